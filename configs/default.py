"""Quick start: a byte-level linear-attention language model on Python's documentation and sources.

    python train.py

The data needs no download.  On 2 CPU cores (AMD EPYC, AVX-512, 2026-11-24), the run takes 84 s in
all and reaches 1.895 bits/byte on the validation split.
"""

import ml_collections

from configs import mechanisms


def get_config(
    variant: str = "linear", *, width: int = 128, num_layers: int = 4
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "task": "language_modelling",
            "seed": 0,
            "num_steps": 800,
            "log_every": 100,
            "eval_every": 400,
            "eval_batches": 20,
            "checkpoint_every": 400,
            "keep_checkpoints": 2,
            "final_evaluation": True,
            "sample": True,
            "accumulate_steps": 1,
            # Devices along each axis; 0 is all devices.
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "sequence": 1},
            "ema_decay": 0.0,
            "label_smoothing": 0.0,
            "data": {
                "dataset": "embedded",
                "path": "",
                "tokenizer": "bytes",
                "packing": "contiguous",
                "batch_size": 8,
                "sequence_length": 256,
            },
            "model": {
                **mechanisms.model(variant, num_layers=num_layers),
                "width": width,
                "num_heads": 4,
                "max_positions": None,
                "norm_position": "pre",
                "residual": "sum",
                "dropout": 0.0,
                "tied": True,
                "scan_layers": None,
                "remat": "none",
                "dtype": "float32",
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 2e-2,
                "weight_decay": 0.1,
                "options": {},
                "schedule": "cosine",
                "schedule_steps": 0,  # 0 is num_steps
                "warmup_steps": 50,
                "final_fraction": 0.0,
                "clip_norm": 1.0,
            },
        }
    )
