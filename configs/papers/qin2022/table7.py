"""Speed on Long Range Arena: table 7 of Qin et al. 2022."""

from configs.papers.qin2022 import experiments
from linear_transformer.papers.tables import Column, Row, Table

_PUBLISHED = {
    "Transformer": (39.06, "OOM", 15.34, "OOM"),
    "FLASH": (40.32, 13.16, 20.49, 6.93),
    "Performer": (104.17, 31.25, 28.41, 9.06),
    "TransNormer T2": (119.05, 36.23, 29.41, 10.16),
}

TABLE = Table(
    title="Speed of inference and of training by length",
    source=experiments.source(7),
    note="On an A6000.  OOM: out of memory.",
    columns=tuple(
        Column(
            f"{what}, {length}",
            "steps/s",
            better="higher",
            reason="no benchmark of these models and lengths",
        )
        for what in ("inference", "training")
        for length in ("1K", "5K")
    ),
    rows=tuple(Row(name, values) for name, values in _PUBLISHED.items()),
)
