"""enwik8, bytes: 12 layers of width 512 at context 1024.

    python train.py --config=configs/lm/enwik8.py --config.data.path=FOLDER_WITH_enwik8.zip
    python eval.py --workdir=runs/lm/enwik8 --split=test

Without a path, the zip is downloaded.  The hyper-parameters are from the enwik8 comparison in Peng
et al. 2023 (RWKV, table 5), where a linear transformer of this size (`:katharopoulos`) reaches
1.207 and softmax (`:softmax`) 1.137 bits per byte on the test split.  Training takes days on a GPU;
the config was not run here.
"""

import ml_collections

from configs import default, mechanisms


def get_config(variant: str = "katharopoulos") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=512, num_layers=12)
    config.num_steps = 400_000
    config.log_every = 100
    config.eval_every = 5_000
    config.checkpoint_every = 5_000
    config.data.update(dataset="enwik8", batch_size=16, sequence_length=1024)
    config.model.update(num_heads=8, dropout=0.1, scan_layers=None)
    mechanisms.follow_data(config.model.mixers)
    config.optimizer.update(
        name="adamw", learning_rate=6e-4, weight_decay=0.1, warmup_steps=2_000, final_fraction=0.1
    )
    return config
