"""How much gradients vary: table 2 of Qin et al. 2022."""

from configs.papers.qin2022 import experiments
from linear_transformer.papers.tables import Column, Row, Table

TABLE = Table(
    title="Relative standard deviation of gradients",
    source=experiments.source(2),
    note="After 50,000 steps.",
    columns=(
        Column(
            "relative standard deviation",
            digits=2,
            reason="`python -m linear_transformer.analysis.gradient_variance` prints it, and "
            "writes no file",
        ),
    ),
    rows=(
        Row("1 + elu", (0.58,)),
        Row("Performer", (0.47,)),
        Row("vanilla", (0.25,)),
        Row("NormAttention", (0.20,)),
    ),
)
