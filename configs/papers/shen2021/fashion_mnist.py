"""Efficient attention in a small ResNet on Fashion-MNIST: a twin of imagenet.py for 2 cores.

    python train.py --config=configs/papers/shen2021/fashion_mnist.py:efficient
    python eval.py --workdir=runs/papers/shen2021/fashion_mnist-efficient --split=test

The model has three blocks of 16, 32 and 64 channels; the module follows the second block, where
images have 14 x 14 pixels.  Results after 1,500 steps of 64 images, 1.7 epochs:

    variant       validation   test    loss, nats   parameters   seconds in all
    :baseline        89.80 %   89.27 %      0.272       77,754               54
    :efficient       90.62 %   90.04 %      0.258       80,922               58
    :non_local       89.82 %   89.36 %      0.280       80,922               81

The table has accuracies of one seed each, and the loss of the validation split, in fp32 on an AMD
EPYC: the seconds and :baseline on 2 cores on 2026-11-24, when Muon updated the output layer too;
the other accuracies and losses on one core each on 2026-12-02.  With 5,000 validation images, the
standard error of an accuracy is 0.4 points: the table shows that all variants train and what they
cost, not which is better.
"""

import ml_collections

from configs.papers.shen2021 import imagenet
from linear_transformer.errors import ConfigError

# One block a stage; attention after the second, where images have 14 x 14 = 196 pixels.
VARIANTS = {
    "baseline": {"attention": "efficient", "attention_after": ()},
    "efficient": {"attention": "efficient", "attention_after": (2,)},
    "non_local": {"attention": "non_local", "attention_after": (2,)},
}


def get_config(variant: str = "efficient") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ConfigError(f"--config=...:{variant}: the variants are {', '.join(VARIANTS)}")
    config = imagenet.get_config()
    config.num_steps = 1_500
    config.log_every = 100
    config.eval_every = 500
    config.eval_batches = 20
    config.checkpoint_every = 500
    config.data = ml_collections.ConfigDict(
        {"dataset": "fashion_mnist", "path": "", "batch_size": 64, "flip": True, "padding": 0}
    )
    config.model.update(
        stage_blocks=(1, 1, 1),
        block="basic",
        width=16,
        stem="thumbnail",
        norm_groups=4,
        **VARIANTS[variant],
    )
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "muon",  # better than SGD and AdamW after 400 steps
            "learning_rate": 2e-2,
            "weight_decay": 0.1,
            "options": {},
            "schedule": "cosine",
            "schedule_steps": 0,
            "warmup_steps": 50,
            "final_fraction": 0.0,
            "clip_norm": 0.0,
        }
    )
    return config
