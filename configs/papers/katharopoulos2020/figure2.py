"""Convergence of the copy task: figure 2 of Katharopoulos et al. 2020; see `copying.py`."""

from linear_transformer.reports.tables import Column, Experiment, Row, Table

_CONFIG = "configs/papers/katharopoulos2020/copying.py"

TABLE = Table(
    title="Copying sequences: convergence",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), figure 2 and section 4.1.1",
    note="The figure has curves without numbers: linear reaches the loss of softmax, and lsh ends "
    "higher.  The reduced twins copy up to 32 tokens instead of 128.",
    columns=(Column("loss", "nats", metric="loss", split="validation", digits=5),),
    rows=tuple(
        Row(
            name,
            (None,),
            paper=Experiment(f"{_CONFIG}:{variant}"),
            reduced=Experiment(f"{_CONFIG}:{variant},small"),
        )
        for name, variant in (("softmax", "softmax"), ("lsh-4", "lsh"), ("linear", "linear"))
    ),
    curves=True,
)
