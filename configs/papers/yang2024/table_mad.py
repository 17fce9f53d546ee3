"""Memorization, a column of the table on MAD of Yang et al. 2024; see `memorization.py`."""

from configs.papers.yang2024.memorization import GRID, VOCABULARIES
from linear_transformer.reports.tables import Column, Experiment, Row, Table

_PUBLISHED = {  # score, and the name of the mechanism
    "Transformer": (85.2, "softmax"),
    "GLA": (63.3, "gla"),
    "DeltaNet": (52.8, "delta_net"),
}
_NAMES = tuple(f"vocabulary {size:,}" for size in VOCABULARIES)

TABLE = Table(
    title="MAD: memorization",
    source="Yang et al. 2024, DeltaNet (arXiv:2406.06484), table on MAD, column Memorize",
    note="The papers print the mean over the vocabularies; each cell is the best of a grid.  The "
    "Transformer's score is lower here than published; it misses most facts of the two largest "
    "vocabularies.  The cause is not known.",
    columns=(
        *(
            Column(name, "%", metric="accuracy", better="higher", enough=1.0, scale=100.0, digits=1)
            for name in _NAMES
        ),
        Column("score", "%", better="higher", digits=1, mean_of=_NAMES),
    ),
    rows=tuple(
        Row(
            name,
            (*(None for _ in VOCABULARIES), score),
            paper=(
                *(
                    Experiment(
                        f"configs/papers/yang2024/memorization.py:{mechanism}",
                        changes={"data.options.vocab_size": size},
                        grid=GRID,
                    )
                    for size in VOCABULARIES
                ),
                None,
            ),
        )
        for name, (score, mechanism) in _PUBLISHED.items()
    ),
)
