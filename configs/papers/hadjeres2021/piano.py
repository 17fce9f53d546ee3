"""Piano Inpainting Application (Hadjeres & Crestel 2021) at the size of its released code.

    python train.py --config=configs/papers/hadjeres2021/piano.py \
        --config.data.path=FOLDER_OF_MIDI_FILES
    python eval.py --workdir=runs/papers/hadjeres2021/piano --split=test

The model has 4 anticausal encoder layers and 8 causal decoder layers of width 512 with GRU gates
(75.6 M parameters); windows are 1024 notes (4096 tokens), and AdamW has a constant rate of 1e-4.
The released code trains on GiantMIDI-Piano with 2 windows per GPU, for up to 512,000 steps; there
is no published number.  Training needs accelerators; the config was not run here.  piano_small.py
is the twin that trains on 2 cores.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "task": "inpainting",
            "seed": 0,
            "num_steps": 512_000,
            "log_every": 100,
            "eval_every": 5_000,
            "eval_batches": 50,
            "checkpoint_every": 5_000,
            "keep_checkpoints": 2,
            "final_evaluation": True,
            "sample": False,
            "accumulate_steps": 1,
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "sequence": 1},
            "ema_decay": 0.0,
            "data": {
                "dataset": "midi_folder",
                "path": "",
                "batch_size": 2,
                "sequence_length": 4096,
            },
            "model": {
                "width": 512,
                "encoder_layers": 4,
                "decoder_layers": 8,
                "num_heads": 8,
                "feed_forward_width": None,
                "token_width": 32,
                "index_width": 128,
                "channel_width": 12,
                "elapsed_width": 128,
                "feature_map": "elu_plus_one",
                "residual": "gru",
                "activation": "gelu",
                "norm": "layernorm",
                "dropout": 0.1,
                "scan_layers": True,
                "remat": "none",
                "dtype": "float32",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "weight_decay": 1e-3,
                "options": {},
                "schedule": "constant",
                "warmup_steps": 0,
                "final_fraction": 1.0,
                "clip_norm": 5.0,
            },
        }
    )
