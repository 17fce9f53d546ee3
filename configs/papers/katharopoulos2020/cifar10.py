"""CIFAR-10 pixel by pixel: table 2 of Katharopoulos et al. 2020 (arXiv:2006.16236).

    python train.py --config=configs/papers/katharopoulos2020/cifar10.py:linear \
        --config.data.path=FOLDER_OF_THE_BINARY_VERSION
    python eval.py --workdir=runs/papers/katharopoulos2020/cifar10-linear --split=test

Published bits/dim after 7 days on one GPU: :softmax 3.47, :linear 3.40, :lsh 3.39 (1 round) and
3.51 (4 rounds).  The model has 16 layers and is otherwise the one of mnist.py; an image is the
sequence of its 3,072 channel values.  The released command has RAdam at 2e-4, and 10 images per
step for 500,000 steps.  The config was not run here.

`,small` has 4 layers of width 128, as in mnist.py.
"""

import ml_collections

from configs.papers.katharopoulos2020 import mechanisms, mnist


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    config = mnist.images(
        variant, dataset="cifar10", pixels=3 * 32 * 32, num_layers=16, lsh_chunk=37
    )
    config.data.batch_size = 10
    if not mechanisms.parse(variant)[1]:
        config.num_steps = 500_000
        config.eval_every = config.checkpoint_every = 5_000
        config.optimizer.learning_rate = 2e-4
    return config
