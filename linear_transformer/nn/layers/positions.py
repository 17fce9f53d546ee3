"""Positional encodings: sinusoidal, learned, rotary, and the linearised relative encoding LRPE."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.parameters import embedding, vector
from linear_transformer.types import Positions

MAX_WAVELENGTH = 10_000.0


def _frequencies(width: int) -> Float[Array, " W"]:
    return MAX_WAVELENGTH ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _angles(positions_BT: Positions, frequencies_W: Float[Array, " W"]) -> Float[Array, "B T W"]:
    """Products of position and frequency in fp32."""
    return positions_BT[..., None].astype(jnp.float32) * frequencies_W


def sinusoidal(positions_BT: Positions, width: int) -> Float[Array, "B T D"]:
    """Sinusoidal features [sin, cos] for an even `width` D (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(positions_BT, _frequencies(width))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotate(
    x_BTHK: Float[Array, "B T H K"],
    positions_BT: Positions | None,
    frequencies_W: Float[Array, " W"] | None = None,
) -> Float[Array, "B T H K"]:
    """Rotates feature pairs (i, i + K/2) by position times frequency: rotary positions.

    Su et al. 2021 (RoFormer), equation 34; inner products depend on position differences only.

    Args:
      x_BTHK: queries or keys; K is even.
      positions_BT: positions of the tokens.
      frequencies_W: K / 2 frequencies; 10000^(-2i/K) if None.

    Raises:
      ValueError: `positions_BT` is None.
    """
    if positions_BT is None:
        raise ValueError("positions is None; queries and keys are rotated by them")
    if frequencies_W is None:
        frequencies_W = _frequencies(x_BTHK.shape[-1])
    angles = _angles(positions_BT, frequencies_W)[:, :, None, :]
    sin, cos = jnp.sin(angles).astype(x_BTHK.dtype), jnp.cos(angles).astype(x_BTHK.dtype)
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class LRPE(nnx.Module):
    """Linearised relative positional encoding: a fixed reflection, then a learned rotation.

    The layer maps x_t to `R(t theta) (I - 2 u u^T) x_t`.  The random unit vector u is not trained;
    the frequencies theta are, and start at 10000^(-2i/K).  Inner products of queries and keys then
    depend on position differences, as with rotary positions (Qin et al. 2023, "Linearized Relative
    Positional Encoding"; the setting is the one of the released TransNormer).
    """

    def __init__(self, key_width: int, *, rngs: nnx.Rngs):
        if key_width % 2:
            raise ValueError(f"lrpe needs an even key width, not {key_width}")
        # A parameter, so that checkpoints contain it; `stop_gradient` keeps it constant.
        reflection = nnx.initializers.normal(1.0)(rngs.params(), (key_width,))
        self.reflection = nnx.Param(reflection, **vector(None))
        self.frequencies = nnx.Param(_frequencies(key_width), **vector(None))

    def __call__(
        self, x_BTHK: Float[Array, "B T H K"], positions_BT: Positions
    ) -> Float[Array, "B T H K"]:
        u_K = lax.stop_gradient(self.reflection[...])
        u_K = (u_K / jnp.linalg.norm(u_K)).astype(x_BTHK.dtype)
        reflected = x_BTHK - 2 * jnp.sum(x_BTHK * u_K, axis=-1, keepdims=True) * u_K
        return rotate(reflected, positions_BT, self.frequencies[...])


class PositionEmbedding(nnx.Module):
    """Absolute positions, added or concatenated to token embeddings.

    Attributes:
      kind: "none" (also for rotary, which the mixers apply), "sinusoidal" (added),
        "sinusoidal_concatenated" (half of the width, as in the copy task of Katharopoulos et al.
        2020) or "learned" (added; a table of `max_positions` rows).
    """

    def __init__(self, kind: str, width: int, max_positions: int | None, *, rngs: nnx.Rngs):
        self.kind = kind
        self.capacity = max_positions if kind == "learned" else None  # None is no limit
        if kind == "learned":
            if max_positions is None:
                raise ValueError("max_positions is None; a learned table needs its rows")
            self.table = nnx.Embed(
                max_positions,
                width,
                embedding_init=nnx.initializers.normal(0.02),
                embedding_metadata=embedding(None, "embed"),
                rngs=rngs,
            )

    @staticmethod
    def token_width(kind: str, width: int) -> int:
        """Width of the token embedding in a model of `width`."""
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
