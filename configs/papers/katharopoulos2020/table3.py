"""Speech recognition: table 3 of Katharopoulos et al. 2020; see `speech.py`."""

from linear_transformer.papers.tables import Column, Experiment, Row, Table

_CONFIG = "configs/papers/katharopoulos2020/speech.py"
_ROWS = {
    "Bi-LSTM": ("bilstm", (10.94, 1047)),
    "softmax": ("softmax", (5.12, 2711)),
    "lsh-4": ("lsh", (9.33, 2250)),
    "linear": ("linear", (8.08, 824)),
}

TABLE = Table(
    title="Wall Street Journal: phoneme error rate, and seconds an epoch",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), table 3",
    note="The reduced twins learn characters from 16 minutes of one speaker.",
    columns=(
        Column(
            "phoneme error rate, validation",
            "%",
            metric="unit_error_rate",
            split="validation",
            scale=100.0,
            digits=2,
            tolerance=0.5,
        ),
        Column(
            "an epoch", "s", reason="rows are padded to 2,400 frames here: times do not compare"
        ),
    ),
    rows=tuple(
        Row(
            name,
            published,
            paper=Experiment(f"{_CONFIG}:{variant}", files={"data.path": "wsj"}),
            reduced=Experiment(f"{_CONFIG}:{variant},small"),
        )
        for name, (variant, published) in _ROWS.items()
    ),
)
