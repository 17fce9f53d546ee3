"""MNIST and CIFAR-10 with a KV cache for softmax: table 4 of Katharopoulos et al. 2020."""

from configs.papers.katharopoulos2020 import experiments
from linear_transformer.reports.tables import Row, Table

_PUBLISHED = {
    "softmax": (0.621, 0.45, 3.47, 0.004),
    "stateful-softmax": (0.621, 7.56, 3.47, 0.32),
    "lsh-1": (0.745, 0.68, 3.39, 0.015),
    "lsh-4": (0.676, 0.27, 3.51, 0.005),
    "linear": (0.644, 142.8, 3.40, 17.85),
}


def _each(name: str, small: bool) -> tuple:
    mnist, cifar10 = (experiments.images(d, name, small=small) for d in ("mnist", "cifar10"))
    return mnist, None, cifar10, None


TABLE = Table(
    title="MNIST and CIFAR-10, with stateful softmax",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), table 4 (supplement C.1)",
    note="stateful-softmax draws with a cache of keys and values; its model is that of softmax.",
    columns=(
        experiments.bits_per_dim("MNIST", digits=3),
        experiments.images_per_second("mnist", "MNIST, speed"),
        experiments.bits_per_dim("CIFAR-10", digits=2),
        experiments.images_per_second("cifar10", "CIFAR-10, speed"),
    ),
    rows=tuple(
        Row(
            name,
            published,
            paper=_each(name, small=False),
            reduced=_each(name, small=True),
            candidate=name,
        )
        for name, published in _PUBLISHED.items()
    ),
)
