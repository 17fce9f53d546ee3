"""Long Range Arena: table 6 of Qin et al. 2022; see configs/lra."""

from configs.papers.lra2020 import experiments as lra
from configs.papers.qin2022 import experiments
from linear_transformer.reports.published_lra import COLUMNS
from linear_transformer.reports.tables import Published, Row, Table

_TASKS = ("Text", "Retrieval", "ListOps", "Pathfinder", "Image")
_UNKNOWN = (None,) * 5
# Published accuracies, and the mechanism of configs/lra/variants.py.
_ROWS: dict[str, tuple[tuple[Published, ...], str | None]] = {
    "Transformer": ((61.95, 80.69, 38.37, 65.26, 40.57, 57.37), "softmax"),
    "cosFormer": ((67.70, 83.15, 36.50, 71.96, 51.23, 62.11), "cosformer"),
    "FLASH": ((64.10, 86.10, 38.70, 70.25, 47.40, 61.31), "flash"),
    "LS": ((*_UNKNOWN, 61.22), None),
    "Performer": ((*_UNKNOWN, 58.00), "performer"),
    "TransNormer T1": ((*_UNKNOWN, 63.71), "transnormer_t1"),
    "TransNormer T2": ((None, None, None, 76.80, None, 64.80), "transnormer_t2"),
}


def _row(name: str, published: tuple[Published, ...], mechanism: str | None) -> Row:
    if mechanism is None:
        return Row(name, published, reason="configs/lra has no such mechanism")
    own = mechanism.startswith("transnormer")
    return Row(
        name,
        published,
        paper=(*(lra.paper(task, mechanism) for task in _TASKS), None) if own else None,
        reduced=(*(lra.reduced(task, mechanism) for task in _TASKS), None),
        reason="" if own else "the paper's setting for it is not known",
    )


TABLE = Table(
    title="Long Range Arena: accuracy",
    source=experiments.source(6),
    note="Numbers that could not be confirmed are left out.  Not to be compared with the original "
    "table of Long Range Arena: code, sizes and splits are others.",
    columns=(*(COLUMNS[task] for task in _TASKS), lra.average(_TASKS)),
    rows=tuple(_row(name, *choices) for name, choices in _ROWS.items()),
)
