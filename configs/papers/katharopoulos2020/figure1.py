"""Longest sequences that fit into memory: figure 1 of Katharopoulos et al. 2020."""

from linear_transformer.reports.tables import Benchmark, Column, Row, Table

TABLE = Table(
    title="Time and memory of attention and its gradients",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), figure 1 and section 4.1.2",
    note="The figure has curves without numbers; the text says up to which power of two they go, "
    "on a GTX 1080 Ti of 11 GB (2^16 was the longest tried); here programs that need more are not "
    "run either.",
    pictures=(
        (
            "figure1.png",
            "The curves, `python -m benchmarks.longest --rounds=3 "
            "--plot=docs/results/figure1.png`; dotted, where the paper's end.",
        ),
    ),
    columns=(
        Column(
            "longest sequence",
            "tokens",
            better="higher",
            benchmark=Benchmark(
                command="python -m benchmarks.longest",
                results="longest",
                candidate="candidate",
                value="longest",
            ),
        ),
    ),
    rows=(
        Row("softmax", (4096,), candidate="softmax"),
        Row("lsh-4", (16384,), candidate="lsh-4"),
        Row("lsh-8", (16384,), candidate="lsh-8"),
        Row("linear", (65536,), candidate="linear"),
    ),
)
