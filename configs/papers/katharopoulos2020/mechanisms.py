"""Mechanisms that Katharopoulos et al. 2020 compare, and the transformer of the paper."""

import ml_collections

from linear_transformer.errors import ConfigError

# Name in the paper -> name in configs/mechanisms.py.
NAMES = {"linear": "katharopoulos", "softmax": "softmax", "lsh": "lsh"}


def parse(variant: str) -> tuple[str, bool]:
    """Parses a variant: ("linear", True) for "linear,small".

    Raises:
      ConfigError: there is no such variant.
    """
    name, *size = variant.split(",")
    if name not in NAMES or size not in ([], ["small"]):
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(NAMES)}, "
            "each alone or with ',small'"
        )
    return name, bool(size)


def as_released(config: ml_collections.ConfigDict, *, heads: int) -> None:
    """Sets the transformer of pytorch-fast-transformers; positions take half of the width."""
    config.model.update(
        num_heads=heads,
        norm_position="post",
        activation="relu",
        positions="sinusoidal_concatenated",
        tied=False,
        dropout=0.1,
    )
