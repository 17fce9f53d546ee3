"""Stereo depth on Scene Flow: results of Shen et al. 2021."""

from configs.papers.shen2021 import coco
from linear_transformer.papers.tables import Column, Row, Table

_PUBLISHED = {
    "iResNet-i2": 1.40,
    "PSMNet": 1.09,
    "EdgeStereo": 1.12,
    "CSPN": 0.78,
    "PSMNet with modules": 0.48,
}

TABLE = Table(
    title="Scene Flow: end-point error",
    source=coco.SOURCE,
    columns=(
        Column(
            "end-point error", "pixels", digits=2, reason="stereo depth is not part of this project"
        ),
    ),
    rows=tuple(Row(name, (value,)) for name, value in _PUBLISHED.items()),
)
