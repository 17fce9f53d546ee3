"""Source and columns that the tables of Shen et al. 2021 on COCO share."""

from linear_transformer.papers.tables import Column

SOURCE = (
    "Shen et al., Efficient Attention (arXiv:1812.01243), as in the authors' article of 2019, an "
    "earlier version of the paper"
)
REASON = "object detection is not part of this project"
BOX_AP = Column("box AP", better="higher", reason=REASON)
MASK_AP = Column("mask AP", better="higher", reason=REASON)
