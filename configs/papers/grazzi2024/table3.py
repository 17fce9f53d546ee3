"""Parity at unseen lengths: table 3 of Grazzi et al. 2024; see `parity.py`."""

from configs.papers.grazzi2024.parity import ACCURACY
from linear_transformer.reports.tables import Column, Experiment, Row, Table

# Scaled accuracy 2 a - 1, and the variant.
_PUBLISHED = {
    "Transformer": (0.022, "softmax"),
    "mLSTM": (0.087, "mlstm"),
    "sLSTM": (1.0, "slstm"),
    "Mamba [0, 1]": (0.0, "mamba"),
    "Mamba [-1, 1]": (1.0, "mamba,negative"),
    "DeltaNet [0, 1]": (0.017, "delta_net"),
    "DeltaNet [-1, 1]": (1.0, "delta_net,negative"),
}

TABLE = Table(
    title="Parity of words of 39 to 255 bits, trained on 2 to 39",
    source="Grazzi et al. 2024 (arXiv:2411.12537), table 3, column parity",
    note="The paper prints the scaled accuracy 2 a - 1, best of three seeds; this table has the "
    "accuracy a in percent.  Guessing has 50 %.",
    columns=(Column("accuracy", "%", metric=ACCURACY, better="higher", scale=100.0, digits=2),),
    rows=tuple(
        Row(
            name,
            (50 * (1 + scaled),),
            paper=Experiment(f"configs/papers/grazzi2024/parity.py:{variant}"),
        )
        for name, (scaled, variant) in _PUBLISHED.items()
    ),
)
