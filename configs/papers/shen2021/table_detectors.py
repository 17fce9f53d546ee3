"""Detectors on COCO: results of Shen et al. 2021 and of others."""

from configs.papers.shen2021 import coco
from linear_transformer.papers.tables import Row, Table

_PUBLISHED = {
    "TDM": 36.8,
    "Mask R-CNN, ResNeXt-101": 39.8,
    "Soft-NMS": 40.9,
    "Lighthead R-CNN": 41.5,
    "Fitness-NMS": 41.8,
    "Mask R-CNN, ResNet-101, with modules": 43.1,
    "Mask R-CNN, ResNeXt-101, with modules": 45.9,
}

TABLE = Table(
    title="COCO: detectors",
    source=coco.SOURCE,
    note="For ResNeXt-101 a public leaderboard has 44.9 instead of 45.9.",
    columns=(coco.BOX_AP,),
    rows=tuple(Row(name, (value,)) for name, value in _PUBLISHED.items()),
)
