"""Speech recognition: table 3 of Katharopoulos et al. 2020; see `speech.py`."""

from linear_transformer.reports.tables import Column, Experiment, Row, Table

_CONFIG = "configs/papers/katharopoulos2020/speech.py"
_ROWS = {
    "Bi-LSTM": ("bilstm", 10.94),
    "softmax": ("softmax", 5.12),
    "lsh-4": ("lsh", 9.33),
    "linear": ("linear", 8.08),
}

TABLE = Table(
    title="Wall Street Journal: phoneme error rate",
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
    ),
    rows=tuple(
        Row(
            name,
            (published,),
            paper=Experiment(f"{_CONFIG}:{variant}", files={"data.path": "wsj"}),
            reduced=Experiment(f"{_CONFIG}:{variant},small"),
        )
        for name, (variant, published) in _ROWS.items()
    ),
)
