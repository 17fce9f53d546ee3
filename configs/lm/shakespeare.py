"""Shakespeare"""

import ml_collections

from configs import default


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    config = default.get_config(variant)
    config.data.dataset = "shakespeare"
    return config
