"""Causal language models on WikiText-103: table 4 of Qin et al. 2022; see `wikitext103_ar.py`."""

from configs.papers.qin2022 import experiments
from linear_transformer.reports.tables import Column, Experiment, Row, Table

# Published perplexities, the variant of wikitext103_ar.py, and the mechanism of the reduced twin.
_ROWS = {
    "vanilla": ((29.63, 31.01), "vanilla", "softmax"),
    "LS": ((None, 32.59), None, None),
    "FLASH-quad": ((31.88, None), None, "flash_quad"),
    "FLASH": ((33.18, 34.63), None, "flash"),
    "1 + elu": ((32.63, 34.25), "one_plus_elu", "katharopoulos"),
    "Performer": ((75.29, 77.65), None, "performer"),
    "cosFormer": ((None, None), None, "cosformer"),
    "TransNormer T1": ((None, None), "t1", "transnormer_t1"),
    "TransNormer T2": ((29.57, 31.01), "t2", "transnormer_t2"),
}


def _perplexity(split: str) -> Column:
    return Column(
        split,
        "perplexity per word",
        metric="word_perplexity",
        reduced_metric="bits_per_byte",
        split=split,
        digits=2,
        tolerance=0.5,
    )


TABLE = Table(
    title="WikiText-103: perplexity per word",
    source=experiments.source(4),
    note="156M parameters, FLASH 153M.  Numbers that could not be confirmed are left out.  Vanilla "
    "and T2 have the same number on the test split in the source.  The reduced twins read "
    "Shakespeare in bytes, and are measured in bits per byte.",
    columns=(_perplexity("validation"), _perplexity("test")),
    rows=tuple(
        Row(
            name,
            published,
            paper=Experiment(
                f"configs/papers/qin2022/wikitext103_ar.py:{variant}",
                files={"data.path": "wikitext103"},
            )
            if variant
            else None,
            reduced=experiments.shakespeare(mechanism),
            reason="" if variant else "no config in the paper's setting",
        )
        for name, (published, variant, mechanism) in _ROWS.items()
    ),
)
