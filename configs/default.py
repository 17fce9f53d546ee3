"""Quick start: a byte-level linear-attention language model on text that comes with Python.

    python train.py

Needs no network. On 2 CPU cores it takes about MINUTES minutes and reaches about NUMBER bits/byte
on the validation split.
"""

import ml_collections

from linear_transformer.errors import ConfigError

VARIANTS = {
    "linear": {"feature_map": "elu_plus_one", "convolution": 0},
    "softmax": {"cache_capacity": 1024},
}


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ConfigError(f"--config=...:{variant}: the variants are {', '.join(VARIANTS)}")
    return ml_collections.ConfigDict(
        {
            "task": "language_modelling",
            "seed": 0,
            "num_steps": 600,
            "log_every": 50,
            "eval_every": 200,
            "eval_batches": 20,
            "checkpoint_every": 200,
            "keep_checkpoints": 2,
            "final_evaluation": True,
            "sample": True,
            "accumulate_steps": 1,
            "ema_decay": 0.0,
            "label_smoothing": 0.0,
            "data": {
                "dataset": "embedded",
                "path": "",
                "tokenizer": "bytes",
                "packing": "contiguous",
                "batch_size": 16,
                "sequence_length": 256,
            },
            "model": {
                "width": 256,
                "num_layers": 4,
                "num_heads": 8,
                "feed_forward_width": 1024,
                "pattern": (variant,),
                "mixers": {variant: VARIANTS[variant]},
                "gated": False,
                "activation": "gelu",
                "positions": "sinusoidal",
                "max_positions": 1024,
                "norm": "layernorm",
                "norm_position": "pre",
                "dropout": 0.0,
                "tied": True,
                "scan_layers": False,
                "remat": "none",
                "dtype": "float32",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "weight_decay": 0.1,
                "options": {"b2": 0.99},
                "schedule": "cosine",
                "warmup_steps": 50,
                "final_fraction": 0.1,
                "clip_norm": 1.0,
            },
        }
    )
