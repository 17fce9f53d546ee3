"""ResNet-50 with modules of efficient attention: results of Shen et al. 2021 on ImageNet."""

from linear_transformer.reports.tables import Column, Experiment, Row, Table

# Number of modules, top-1 accuracy, and variants of imagenet.py and fashion_mnist.py.
_ROWS = (
    ("no module", 76.052, "resnet50", "baseline"),
    ("1 module", 76.932, "one_module", "efficient"),
    ("2 modules", 77.312, "two_modules", None),
)

TABLE = Table(
    title="ImageNet: ResNet-50",
    source="Shen et al., Efficient Attention (arXiv:1812.01243), as in the authors' article of "
    "2019, an earlier version of the paper",
    note="The reduced twins are three blocks on Fashion-MNIST.",
    columns=(
        Column(
            "top-1 accuracy",
            "%",
            metric="accuracy",
            split="validation",
            better="higher",
            scale=100.0,
            digits=3,
            tolerance=0.5,
        ),
    ),
    rows=tuple(
        Row(
            name,
            (value,),
            paper=Experiment(
                f"configs/papers/shen2021/imagenet.py:{variant}", files={"data.path": "imagenet"}
            ),
            reduced=Experiment(f"configs/papers/shen2021/fashion_mnist.py:{twin}")
            if twin
            else None,
        )
        for name, value, variant, twin in _ROWS
    ),
)
