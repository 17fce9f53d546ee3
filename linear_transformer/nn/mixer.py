"""What every token mixer is, and the table of mixers by name.

    y_BTD, state = mixer(x_BTD, state=None, *, segment_ids=None, positions=None)

One call serves training (no state in, none out), prefill (a state, many tokens) and decoding (a
state, one token).  Nothing is stored in a module between calls.  `init_state(batch_size)` is a
pytree of arrays with the batch in front, all zeros, so a row is reset by zeroing it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

MixerState = Any


def reset_rows(state: MixerState, rows_B: Bool[Array, " B"]) -> MixerState:
    """The state of a fresh start in the marked rows, unchanged elsewhere."""

    def reset(x):
        return jnp.where(rows_B.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)

    return jax.tree.map(reset, state)


def require_causal(direction: str) -> None:
    """Raises a ValueError where a state is asked of a mixer that looks ahead."""
    if direction != "causal":
        raise ValueError(f"direction is {direction!r}: only a causal mixer has a state")
