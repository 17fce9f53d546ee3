"""Ablations of the module in Mask R-CNN: results of Shen et al. 2021 on COCO 2017."""

from configs.papers.shen2021 import coco
from linear_transformer.papers.tables import Row, Table

_PUBLISHED = {
    "normalisation: scaling": (40.2, 35.9),
    "normalisation: softmax": (40.2, 36.0),
    "normalisation: none": ("NaN", "NaN"),
    "1 head": (40.2, 36.0),
    "8 heads": (40.3, 36.0),
    "32 heads": (40.4, 35.9),
    "1 module": (40.2, 36.0),
    "5 modules": (40.6, 36.1),
    "7 modules": (41.2, 36.7),
    "ResNet-50": (39.4, 35.1),
    "ResNet-50 with modules": (41.2, 36.7),
    "ResNet-101": (41.3, 36.6),
    "ResNet-101 with modules": (43.1, 37.9),
    "ResNeXt-101": (43.5, 38.5),
    "ResNeXt-101 with modules": (44.9, 39.5),
    "1 non-local module": (40.3, 35.9),
    "5 non-local modules": ("OOM", "OOM"),
    "7 non-local modules": ("OOM", "OOM"),
}

TABLE = Table(
    title="COCO 2017: normalisation, heads, modules, backbones, non-local modules",
    source=coco.SOURCE,
    note="Mask R-CNN with ResNet-50 unless a row says otherwise.",
    columns=(coco.BOX_AP, coco.MASK_AP),
    rows=tuple(Row(name, published) for name, published in _PUBLISHED.items()),
)
