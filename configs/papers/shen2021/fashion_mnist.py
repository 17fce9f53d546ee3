"""Fashion-MNIST classes with and without an efficient attention module (Shen et al. 2021).

    python train.py --config=configs/papers/shen2021/fashion_mnist.py:efficient
    python eval.py --workdir=runs/papers/shen2021/fashion_mnist-efficient --split=test

The small twin of imagenet.py: a residual network of three stages, 16 channels wide.  Variants:
:baseline has no module, :efficient has one, :non_local the quadratic module it replaces.  Not run
to its end yet.
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
            "name": "muon",  # SGD needs many more epochs
            "learning_rate": 2e-2,
            "weight_decay": 0.1,
            "options": {},
            "schedule": "cosine",
            "warmup_steps": 50,
            "final_fraction": 0.0,
            "clip_norm": 0.0,
        }
    )
    return config
