"""Seconds to draw one image: table 5 of Katharopoulos et al. 2020."""

from configs.papers.katharopoulos2020 import experiments
from linear_transformer.reports.tables import Column, Row, Table

_PUBLISHED = {
    "softmax": (72.6, 10.2, 8651.4, 300.1),
    "stateful-softmax": (7.4, 10.4, 71.9, 70.4),
    "lsh-1": (46.0, 19.2, 2318.9, 221.6),
    "lsh-4": (112.0, 55.8, 5263.7, 683.9),
    "linear": (5.5, 7.3, 45.1, 61.3),
}

TABLE = Table(
    title="Latency of one image",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), table 5 (supplement C.2)",
    note="One image at a time.",
    columns=tuple(
        Column(
            f"{dataset.upper()}, {device}",
            "s",
            benchmark=experiments.drawing(dataset, "seconds an image", devices, batch=1),
        )
        for dataset in ("mnist", "cifar10")
        for device, devices in (("CPU", "cpu"), ("GPU", "accelerator"))
    ),
    rows=tuple(Row(name, values, candidate=name) for name, values in _PUBLISHED.items()),
)
