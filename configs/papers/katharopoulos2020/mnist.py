"""MNIST pixel by pixel: table 1 of Katharopoulos et al. 2020 (arXiv:2006.16236).

    python train.py --config=configs/papers/katharopoulos2020/mnist.py:linear
    python eval.py --workdir=runs/papers/katharopoulos2020/mnist-linear --split=test
    python -m linear_transformer.generate_images \
        --workdir=runs/papers/katharopoulos2020/mnist-linear --given_rows=14 --output=mnist.png

Published bits/dim: :softmax 0.621, :linear 0.644, :lsh 0.745 (1 round) and 0.676 (4 rounds).  The
model has 8 post-norm layers of 8 heads of 32, a feed-forward of 1024 and a mixture of 10 logistics;
it is trained with RAdam at 1e-4 on 16 images per step for 937,500 steps (250 epochs).  Concatenated
positions and the dropout of 0.1 are taken from the copy task; the paper does not state them.  At
this size, only the first steps were run here.

`,small` (`:linear,small`) has 4 layers of width 128 and trains for 1,500 steps; it reaches 1.571
bits/dim on the test split after 38 minutes (2 shared cores of an AMD EPYC, 2026-11-24), and was
still improving.
"""

import ml_collections

from configs import default
from configs.papers.katharopoulos2020 import mechanisms

MIXTURES = 10


def images(
    variant: str, *, dataset: str, pixels: int, num_layers: int, lsh_chunk: int
) -> ml_collections.ConfigDict:
    """Returns the parts of a config that MNIST and CIFAR-10 share.

    Args:
      pixels: number of channel values of an image; the first one is not predicted.
      lsh_chunk: chunk size of LSH attention, a divisor of `pixels` - 1.
    """
    name, small = mechanisms.parse(variant)
    config = default.get_config(
        mechanisms.NAMES[name],
        width=128 if small else 256,
        num_layers=4 if small else num_layers,
    )
    mechanisms.as_released(config, heads=4 if small else 8)
    config.task = "image_generation"
    config.sample = False
    config.model.num_outputs = 3 * MIXTURES
    config.log_every = 100
    config.eval_batches = 20
    config.data = ml_collections.ConfigDict(
        {"dataset": dataset, "path": "", "batch_size": 16, "sequence_length": pixels - 1}
    )
    if name == "softmax":
        config.model.mixers.softmax.cache_capacity = pixels
    if name == "lsh":
        config.model.mixers.lsh = {
            "rounds": 4,
            "buckets": 64,
            "chunk_size": lsh_chunk,
            "cache_capacity": pixels,
        }
    config.optimizer.update(
        name="radam",
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        clip_norm=0.0,
    )
    if small:
        config.num_steps = 1_500
        config.eval_every = config.checkpoint_every = 500
        config.final_evaluation = False
        config.model.update(norm_position="pre", dropout=0.0)
        config.optimizer.update(learning_rate=3e-3, schedule="cosine", warmup_steps=50)
    return config


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    config = images(variant, dataset="mnist", pixels=28 * 28, num_layers=8, lsh_chunk=29)
    if not mechanisms.parse(variant)[1]:
        config.num_steps = 937_500
        config.eval_every = config.checkpoint_every = 5_000
    return config
