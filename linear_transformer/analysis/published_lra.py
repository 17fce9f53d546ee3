"""Published accuracies on Long Range Arena, in percent."""

import dataclasses

TASKS = ("ListOps", "Text", "Retrieval", "Image", "Pathfinder", "Path-X")

_TABLE_1 = (
    "Long Range Arena, table 1; ListOps most probably with a tokenizer that lost the brackets, "
    "Retrieval far below what others measure for the same models"
)
_NYSTROM = "Nystromformer's code (mlpen/Nystromformer)"
_MEGA = "Mega (facebookresearch/mega)"
_S5 = "S5 (lindermanlab/S5)"
_S4 = "The Annotated S4 (srush/annotated-s4)"
_HGRN2 = "table in the repository of HGRN2 (OpenNLPLab/HGRN2)"
_HGRN2_RAN = _HGRN2 + "; causal, run by its authors"
_2D = _HGRN2 + "; scans images in two dimensions, in Image sees colours and augments"
_LION = "LION (arXiv:2502.16249); no code for these tasks released"
_LION_TABLE = "table in LION (arXiv:2502.16249)"
_RWKV = "RWKV (arXiv:2305.13048), table 4"
_FLOWFORMER = "Flowformer (thuml/Flowformer), Long Range Arena's code"
_WAVSPA = "WavSpA (arXiv:2210.01989)"


@dataclasses.dataclass(frozen=True)
class Row:
    """Published row: one model.

    Attributes:
      accuracies: accuracies on TASKS; None for Path-X if the model failed or did not report it.
      source: publication, and differences of its setting.
      failed: whether the accuracy on Path-X was no better than chance.
    """

    model: str
    accuracies: tuple[float | None, ...]
    source: str
    failed: bool


def _rows(
    source: str, rows: dict[str, tuple[float, ...]], *, reports_path_x: bool = True
) -> list[Row]:
    """Makes the rows of one source; a row with five numbers has no Path-X."""
    return [
        Row(
            model,
            (*values, None)[: len(TASKS)],
            source,
            failed=reports_path_x and len(values) < len(TASKS),
        )
        for model, values in rows.items()
    ]


ROWS = [
    *_rows(
        _TABLE_1,
        {
            "Transformer": (36.37, 64.27, 57.46, 42.44, 71.40),
            "Local attention": (15.82, 52.98, 53.39, 41.46, 66.63),
            "Sparse Transformer": (17.07, 63.58, 59.59, 44.24, 71.71),
            "Longformer": (35.63, 62.85, 56.89, 42.22, 69.71),
            "Linformer": (35.70, 53.94, 52.27, 38.56, 76.34),
            "Reformer": (37.27, 56.10, 53.40, 38.07, 68.50),
            "Sinkhorn Transformer": (33.67, 61.20, 53.83, 41.23, 67.45),
            "Synthesizer": (36.99, 61.68, 54.67, 41.61, 69.45),
            "BigBird": (36.05, 64.02, 59.29, 40.83, 74.87),
            "Linear Transformer": (16.13, 65.90, 53.09, 42.34, 75.30),
            "Performer": (18.01, 65.40, 53.82, 42.77, 77.05),
        },
    ),
    *_rows(
        _NYSTROM,
        {
            "Transformer": (37.10, 65.02, 79.35, 38.20, 74.16),
            "Reformer": (19.05, 64.88, 78.64, 43.29, 69.36),
            "Linformer": (37.25, 55.91, 79.37, 37.84, 67.60),
            "Performer": (18.80, 63.81, 78.62, 37.07, 69.87),
            "Nystromformer": (37.15, 65.52, 79.56, 41.58, 70.94),
        },
        reports_path_x=False,
    ),
    *_rows(
        _FLOWFORMER,
        {
            "Flowformer": (38.70, 64.29, 62.24, 43.20, 73.95),
            "cosFormer": (37.90, 63.41, 61.36, 43.17, 70.33),
        },
        reports_path_x=False,
    ),
    *_rows(
        _HGRN2,
        {
            "cosFormer": (36.50, 67.70, 83.15, 51.23, 71.96),
            "Transformer": (38.37, 61.95, 80.69, 40.57, 65.26),
            "FLASH": (38.70, 64.10, 86.10, 47.40, 70.25),
        },
        reports_path_x=False,
    ),
    *_rows(
        _WAVSPA,
        {"linear attention + AdaWavSpA": (38.90, 76.82, 71.38, 54.81, 79.68)},
        reports_path_x=False,
    ),
    *_rows(_RWKV, {"Hrrformer": (39.98, 65.38, 76.15, 50.45, 72.17)}, reports_path_x=False),
    *_rows(_RWKV, {"RWKV-4": (55.88, 86.04, 88.34, 70.53, 58.42)}),
    *_rows(
        _LION_TABLE,
        {
            "Luna-256": (37.25, 64.57, 79.29, 47.38, 77.72),
            "H-Transformer-1D": (49.53, 78.69, 63.99, 46.05, 68.78),
            "FNet": (35.33, 65.11, 59.61, 38.67, 77.80),
        },
        reports_path_x=False,
    ),
    *_rows(
        _LION,
        {
            "LION-LIT": (16.78, 65.21, 54.0, 43.29, 72.78),
            "LION-D without HIPPO": (32.5, 64.5, 50.0, 47.4, 73.6),
            "LION-S without HIPPO": (36.34, 60.87, 55.0, 42.6, 74.2),
            "LION-D": (62.0, 88.78, 90.12, 85.66, 90.25, 97.28),
            "LION-S": (62.25, 88.10, 90.35, 86.14, 91.30, 97.99),
        },
    ),
    *_rows(
        _S4,
        {
            "S4 (original)": (58.35, 76.02, 87.09, 87.26, 86.05, 88.10),
            "S4-LegS": (59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
            "S4-FouT": (57.88, 86.34, 89.66, 89.07, 94.46),
            "S4D-LegS": (60.47, 86.18, 89.46, 88.19, 93.06, 91.95),
            "S4D-Lin": (60.52, 86.97, 90.96, 87.93, 93.96),
        },
    ),
    *_rows(
        _HGRN2,
        {
            "DSS (softmax)": (60.6, 84.8, 87.8, 85.7, 84.6, 87.8),
            "LRU": (60.20, 89.40, 89.90, 89.00, 95.10, 94.20),
            "SGConv": (61.45, 89.20, 91.11, 87.97, 95.46, 97.83),
        },
    ),
    *_rows(_S5, {"S5": (62.15, 89.31, 91.40, 88.00, 95.33, 98.58)}),
    *_rows(
        _HGRN2_RAN,
        {
            "Mamba": (38.02, 82.98, 72.14, 69.82, 69.26, 67.32),
            "Griffin": (32.34, 71.75, 66.58, 61.15, 73.38, 69.53),
        },
    ),
    *_rows(
        _2D,
        {
            "TNN": (61.04, 87.90, 90.97, 88.24, 93.00, 96.10),
            "HGRN": (59.95, 88.14, 94.23, 88.69, 92.92, 97.50),
            "HGRN2": (60.52, 88.97, 95.07, 89.33, 93.95, 98.12),
        },
    ),
    *_rows(
        _MEGA,
        {
            "Mega-chunk": (58.76, 90.19, 90.97, 85.80, 94.41, 93.81),
            "Mega": (63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
        },
    ),
]
