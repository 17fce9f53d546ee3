"""Bach variant of the Piano Inpainting Application: four voices instead of four note attributes.

    pip install -r requirements-music.txt
    python train.py --config=configs/papers/hadjeres2021/chorales.py
    python eval.py --workdir=runs/papers/hadjeres2021/chorales --split=test

A batch is 8 windows of 48 sixteenth notes, as in the released code; the model has 2 + 2 layers of
width 128, so that it trains on 2 cores.  There is no published number.  The table has nats per
masked step (all four voices), of the model and of the frequencies of each voice in the training
pieces:

                           model   frequencies
    validation, 18 pieces   2.65         10.97
    test, 18 pieces         2.66         10.42

Measured on 2026-11-24 on 2 cores of an AMD EPYC (AVX-512), in fp32; the run took 4.9 minutes in
all, with another job on the machine.
"""

import ml_collections

from configs.papers.hadjeres2021 import piano_small


def get_config() -> ml_collections.ConfigDict:
    config = piano_small.get_config()
    config.data.update(dataset="chorales", batch_size=8, sequence_length=192)
    config.model.elapsed_width = 0
    return config
