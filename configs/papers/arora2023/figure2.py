"""Recall of 4 pairs in 64 tokens at width 64: a point of figure 2 of Arora et al. 2023."""

from configs.papers.arora2023.mqar import RATES
from linear_transformer.reports.tables import Column, Experiment, Row, Table

TABLE = Table(
    title="Multi-query associative recall: 4 pairs in 64 tokens, width 64",
    source="Arora et al. 2023, Zoology (arXiv:2312.04927), figure 2, first panel",
    note="The figure has curves without numbers: softmax attention solves the task at width 64.  "
    "An accuracy of 99 % ends a training.",
    columns=(
        Column(
            "accuracy", "%", metric="accuracy", better="higher", enough=0.99, scale=100.0, digits=1
        ),
    ),
    rows=tuple(
        Row(
            name,
            ("solved" if name == "softmax" else None,),
            paper=Experiment(
                f"configs/papers/arora2023/mqar.py:{name}",
                grid={"optimizer.learning_rate": RATES},
            ),
        )
        for name in ("softmax", "linear", "based", "gla", "delta_net", "gated_delta_net")
    ),
)
