"""Relative standard deviation of gradients: table 2 of Qin et al. 2022."""

from configs.papers.qin2022 import experiments
from linear_transformer.reports.tables import Benchmark, Column, Row, Table

TABLE = Table(
    title="Relative standard deviation of gradients",
    source=experiments.source(2),
    note="After 50,000 steps; here of the gradient's norm, in the first hundreds of steps.",
    columns=(
        Column(
            "relative standard deviation",
            digits=2,
            benchmark=Benchmark(
                command="python -m linear_transformer.analysis.gradient_variance",
                results="gradient_variance",
                candidate="attention",
                value="norm",
            ),
        ),
    ),
    rows=(
        Row("1 + elu", (0.58,), candidate="1+elu"),
        Row("Performer", (0.47,), candidate="Performer"),
        Row("vanilla", (0.25,), candidate="softmax"),
        Row("NormAttention", (0.20,), candidate="NormAttention"),
    ),
)
