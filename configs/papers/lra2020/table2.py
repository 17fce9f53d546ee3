"""Speed and memory on byte-level text: table 2 of Tay et al. 2021."""

from linear_transformer.reports.tables import Benchmark, Column, Row, Table

LENGTHS = (1000, 2000, 3000, 4000)
# Name in the paper, variant of configs/lra/text.py, steps/s and GB at these lengths.
PUBLISHED = (
    ("Transformer", "softmax", (8.1, 4.9, 2.3, 1.4), (0.85, 2.65, 5.51, 9.48)),
    ("Local attention", "local", (9.2, 8.4, 7.4, 7.4), (0.42, 0.76, 1.06, 1.37)),
    ("Linformer", "linformer", (9.3, 9.1, 8.5, 7.7), (0.37, 0.55, 0.99, 0.99)),
    ("Reformer", "lsh", (4.4, 2.2, 1.5, 1.1), (0.48, 0.99, 1.53, 2.28)),
    ("Sinkhorn Transformer", "sinkhorn", (9.1, 7.9, 6.6, 5.3), (0.47, 0.83, 1.13, 1.48)),
    ("Synthesizer", "synthesizer", (8.7, 5.7, 6.6, 1.9), (0.65, 1.98, 4.09, 6.99)),
    ("BigBird", "bigbird", (7.4, 3.9, 2.7, 1.5), (0.77, 1.49, 2.18, 2.88)),
    ("Linear Transformer", "linear", (9.1, 9.3, 8.6, 7.8), (0.37, 0.57, 0.80, 1.03)),
    ("Performer", "performer", (9.5, 9.4, 8.7, 8.0), (0.37, 0.59, 0.82, 1.06)),
)


def _benchmark(value: str, length: int) -> Benchmark:
    return Benchmark(
        command="python -m benchmarks.lra",
        results="lra",
        candidate="name",
        value=value,
        where={"length": length},
    )


TABLE = Table(
    title="Long Range Arena: training speed and memory",
    source="Tay et al. 2021 (arXiv:2011.04006), table 2",
    note="Byte-level text, 32 sequences a step, 4 x 4 TPU v3 chips; peak memory of a device "
    "(here: what XLA allocates for a step).  "
    "Sparse Transformer and Longformer are not in it.",
    columns=(
        *(
            Column(f"speed, {n}", "steps/s", better="higher", benchmark=_benchmark("steps/s", n))
            for n in LENGTHS
        ),
        *(Column(f"memory, {n}", "GB", benchmark=_benchmark("temp GB", n)) for n in LENGTHS),
    ),
    rows=tuple(
        Row(name, (*speeds, *memory), candidate=variant)
        for name, variant, speeds, memory in PUBLISHED
    ),
)
