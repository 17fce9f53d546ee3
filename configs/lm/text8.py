"""text8, 27 characters as bytes: the model of configs/lm/enwik8.py.

    python train.py --config=configs/lm/text8.py --config.data.path=FOLDER_WITH_text8.zip
    python eval.py --workdir=runs/lm/text8 --split=test

Without a path, the zip is downloaded.  There is no published number for this model; Transformer-XL
(large) reaches 1.08 bits per character.  The config was not run here.
"""

import ml_collections

from configs.lm import enwik8


def get_config(variant: str = "katharopoulos") -> ml_collections.ConfigDict:
    config = enwik8.get_config(variant)
    config.data.dataset = "text8"
    return config
