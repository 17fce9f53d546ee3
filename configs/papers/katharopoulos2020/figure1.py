"""The longest sequences that fit: figure 1 of Katharopoulos et al. 2020."""

from linear_transformer.papers.tables import Column, Row, Table

TABLE = Table(
    title="Time and memory of attention and its gradients",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), figure 1 and section 4.1.2",
    note="The figure has curves without numbers; the text says up to which power of two they go, "
    "on a GTX 1080 Ti of 11 GB (2^16 was the longest tried).",
    columns=(
        Column(
            "longest sequence",
            "tokens",
            better="higher",
            reason="nothing searches for it; `python -m benchmarks.attention --plot=FILE` draws "
            "the curves",
        ),
    ),
    rows=(
        Row("softmax", (4096,)),
        Row("lsh-4", (16384,)),
        Row("lsh-8", (16384,)),
        Row("linear", (65536,)),
    ),
)
