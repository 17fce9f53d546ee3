"""WikiText-103, many models in one setting: table 1 of Qin et al. 2024 (TransNormerLLM)."""

from configs.papers.qin2022.experiments import shakespeare
from linear_transformer.reports.tables import Column, Row, Table

# Perplexities, millions of parameters, and the mechanism of the reduced twin.
_ROWS = {
    "Transformer": ((24.40, 24.78), 44.65, "softmax"),
    "FLASH": ((25.92, 26.70), 42.17, "flash"),
    "1 + elu": ((27.44, 28.05), 44.65, "katharopoulos"),
    "Performer": ((62.50, 63.16), 44.65, "performer"),
    "cosFormer": ((26.53, 27.06), 44.65, "cosformer"),
    "TransNormer T1": ((24.43, 25.00), 44.64, "transnormer_t1"),
    "TransNormer T2": ((24.50, 25.05), 44.64, "transnormer_t2"),
    "Syn(D)": ((31.31, 32.43), 46.75, None),
    "Syn(R)": ((33.68, 34.78), 44.65, None),
    "gMLP": ((28.08, 29.13), 47.83, None),
    "S4": ((38.34, 39.66), 45.69, None),
    "DSS": ((39.39, 41.07), 45.73, None),
    "GSS": ((29.61, 30.74), 43.84, None),
    "RWKV": ((24.31, 25.07), 46.23, None),
    "LRU": ((29.86, 31.12), 46.24, "lru"),
    "HGRN": ((24.14, 24.82), 46.25, None),
    "TNN": ((23.98, 24.67), 48.68, None),
    "TransNormerLLM (TNL)": ((23.46, 24.03), 45.45, "lightning"),
}

TABLE = Table(
    title="WikiText-103: perplexity per token, in the setting of TNN",
    source="Qin et al. 2024, Various Lengths, Constant Speed (arXiv:2405.17381), table 1",
    note="In brackets the parameters.  Tokens are probably those of GPT-2, so that nothing here "
    "compares with perplexities per word.  The reduced twins read Shakespeare in bytes, and are "
    "measured in bits per byte.",
    columns=tuple(
        Column(
            split,
            "perplexity per token",
            metric="perplexity",
            reduced_metric="bits_per_byte",
            split=split,
            digits=2,
        )
        for split in ("validation", "test")
    ),
    rows=tuple(
        Row(
            f"{name} ({millions}M)",
            published,
            reduced=shakespeare(mechanism),
            reason="no config in this setting, whose training is not known here",
        )
        for name, (published, millions, mechanism) in _ROWS.items()
    ),
)
