"""Positions: sinusoidal, learned, rotary."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linear_transformer.types import Positions

MAX_WAVELENGTH = 10_000.0


def _angles(positions_BT: Positions, width: int) -> Float[Array, "B T W"]:
    """Position times frequency for width / 2 frequencies, in fp32."""
    frequencies = MAX_WAVELENGTH ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions_BT[..., None].astype(jnp.float32) * frequencies


def sinusoidal(positions_BT: Positions, width: int) -> Float[Array, "B T D"]:
    """[sin, cos] of `width` even features (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(positions_BT, width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(x_BTHK: Float[Array, "B T H K"], positions_BT: Positions) -> Float[Array, "B T H K"]:
    """Rotary positions: feature pairs (i, i + K/2) turned by position times frequency.

    Su et al. 2021 (RoFormer), equation 34; inner products depend on position differences only.
    """
    angles = _angles(positions_BT, x_BTHK.shape[-1])[:, :, None, :]
    sin, cos = jnp.sin(angles).astype(x_BTHK.dtype), jnp.cos(angles).astype(x_BTHK.dtype)
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class PositionEmbedding(nnx.Module):
    """Adds or concatenates absolute positions to token embeddings.

    Attributes:
      kind: "none" (also for rotary, which the mixers apply), "sinusoidal" (added),
        "sinusoidal_concatenated" (half of the width, as in the copy task of Katharopoulos et al.
        2020) or "learned" (added; a table of `max_positions` rows).
    """

    def __init__(self, kind: str, width: int, max_positions: int, *, rngs: nnx.Rngs):
        self.kind = kind
        self.capacity = max_positions if kind == "learned" else None  # None is any number
        if kind == "learned":
            self.table = nnx.Embed(
                max_positions, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs
            )

    @staticmethod
    def token_width(kind: str, width: int) -> int:
        """Width left to the token embedding."""
        return width // 2 if kind == "sinusoidal_concatenated" else width

    def __call__(
        self, x_BTD: Float[Array, "B T D"], positions_BT: Positions
    ) -> Float[Array, "B T M"]:
        if self.kind == "sinusoidal":
            return x_BTD + sinusoidal(positions_BT, x_BTD.shape[-1]).astype(x_BTD.dtype)
        if self.kind == "sinusoidal_concatenated":
            table = sinusoidal(positions_BT, x_BTD.shape[-1]).astype(x_BTD.dtype)
            return jnp.concatenate([x_BTD, table], axis=-1)
        if self.kind == "learned":
            return x_BTD + self.table(positions_BT).astype(x_BTD.dtype)
        return x_BTD


POSITIONS = ("none", "sinusoidal", "sinusoidal_concatenated", "learned", "rotary")
