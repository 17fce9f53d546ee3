"""Induction heads at 2^6 to 2^20 tokens: table 11 of Gu & Dao 2023; see `induction_heads.py`."""

from configs.papers.gu2023.induction_heads import LENGTHS, TRAINED
from linear_transformer.reports.tables import Column, Experiment, Row, Table

TABLE = Table(
    title="Induction heads: accuracy by length, trained on 256 tokens",
    source="Gu & Dao 2023, Mamba (arXiv:2312.00752), table 11, row Mamba",
    note="Guessing has 6.7 %.  The tests have at most 2^22 tokens, so 4 examples of 2^20 tokens.",
    columns=tuple(
        Column(
            f"2^{length.bit_length() - 1}",
            "%",
            metric="accuracy" if length == TRAINED else f"accuracy_at_{length}",
            better="higher",
            scale=100.0,
            digits=1,
        )
        for length in LENGTHS
    ),
    rows=(
        Row(
            "Mamba",
            (100.0,) * len(LENGTHS),
            paper=Experiment("configs/papers/gu2023/induction_heads.py"),
        ),
    ),
)
