"""GLUE: table 5 of Qin et al. 2022."""

from configs.papers.qin2022 import experiments
from linear_transformer.papers.tables import Column, Row, Table

_REASON = "GLUE is not part of this project; the settings of fine-tuning are not published"
_PUBLISHED = {
    "vanilla": (78.79, 38.63),
    "FLASH": (76.87, None),
    "Performer": (63.41, None),
    "1 + elu": (70.00, None),
    "TransNormer T1": (79.38, 45.38),
    "TransNormer T2": (78.78, None),
}

TABLE = Table(
    title="GLUE",
    source=experiments.source(5),
    note="Other tasks than CoLA could not be confirmed.",
    columns=tuple(
        Column(name, better="higher", digits=2, reason=_REASON) for name in ("average", "CoLA")
    ),
    rows=tuple(Row(name, values) for name, values in _PUBLISHED.items()),
)
