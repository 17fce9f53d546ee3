"""MNIST pixel by pixel: table 1 of Katharopoulos et al. 2020; see `mnist.py`."""

from configs.papers.katharopoulos2020 import experiments
from linear_transformer.reports.tables import Row, Table

_PUBLISHED = {
    "softmax": (0.621, 0.45),
    "lsh-1": (0.745, 0.68),
    "lsh-4": (0.676, 0.27),
    "linear": (0.644, 142.8),
}

TABLE = Table(
    title="MNIST: bits per dimension, and images drawn a second",
    source="Katharopoulos et al. 2020 (arXiv:2006.16236), table 1",
    note="Trained for 250 epochs.  lsh-X is Reformer's attention with X rounds of hashing, in a "
    "re-implementation of the authors there and of this project here.",
    pictures=(
        (
            "mnist_samples.png",
            "Drawn by the reduced twin of linear after its 1,500 steps, `python -m "
            "linear_transformer.generate_images --workdir=runs/papers/katharopoulos2020/"
            "mnist-linear,small --output=docs/results/mnist_samples.png`: strokes in the right "
            "places, not digits yet.",
        ),
        (
            "mnist_completions.png",
            "A test image, what is given of it, and four completions: the same with "
            "`--num_images=8 --given_rows=14 --output=docs/results/mnist_completions.png`.",
        ),
    ),
    columns=(
        experiments.bits_per_dim("bits per dimension", digits=3),
        experiments.images_per_second("mnist", "images a second"),
    ),
    rows=tuple(
        Row(
            name,
            published,
            paper=experiments.images("mnist", name),
            reduced=experiments.images("mnist", name, small=True),
            candidate=name,
        )
        for name, published in _PUBLISHED.items()
    ),
)
