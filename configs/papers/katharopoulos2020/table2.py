"""CIFAR-10 pixel by pixel: table 2 of Katharopoulos et al. 2020; see `cifar10.py`."""

from configs.papers.katharopoulos2020 import experiments
from linear_transformer.reports.tables import Row, Table

_PUBLISHED = {
    "softmax": (3.47, 0.004),
    "lsh-1": (3.39, 0.015),
    "lsh-4": (3.51, 0.005),
    "linear": (3.40, 17.85),
}

TABLE = Table(
    title="CIFAR-10: bits per dimension, and images drawn a second",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), table 2",
    note="Trained for 7 days on one P40 each, so not equal numbers of epochs.  "
    "lsh-X is Reformer's attention with X rounds of hashing, in a "
    "re-implementation of the authors there and of this project here.",
    columns=(
        experiments.bits_per_dim("bits per dimension", digits=2),
        experiments.images_per_second("cifar10", "images a second"),
    ),
    rows=tuple(
        Row(
            name,
            published,
            paper=experiments.images("cifar10", name),
            reduced=experiments.images("cifar10", name, small=True),
            candidate=name,
        )
        for name, published in _PUBLISHED.items()
    ),
)
