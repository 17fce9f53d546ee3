"""What every token mixer is.

    y_BTD, state = mixer(x_BTD, state=None, *, segment_ids=None, positions=None)

One call serves training (no state in, none out), prefill (a state, many tokens) and decoding (a
state, one token).  Nothing is stored in a module between calls.  `init_state(batch_size)` is a
pytree of arrays with the batch in front, all zeros, so a row is reset by zeroing it.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from linear_transformer.ops import checks
from linear_transformer.types import Activations, Positions, SegmentIds

MixerState = Any


@runtime_checkable
class Mixer(Protocol):
    """A token mixer, as the docstring of this file says.

    Attributes:
      capacity: tokens that the state can follow; None is any number.
    """

    @property
    def capacity(self) -> int | None: ...

    def init_state(self, batch_size: int) -> MixerState:
        """The state before the first token."""
        ...

    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
    ) -> tuple[Activations, MixerState | None]: ...

    def flops_per_token(self, context: int) -> int:
        """Forward multiply-adds counted as two, projections apart."""
        ...


def checked(call: Callable) -> Callable:
    """The `__call__` of a mixer, with its arguments checked by name.

    A batch of no rows, or rows of no tokens, give an empty output and leave the state as it is.

    Raises:
      ValueError: an argument is of a wrong type or shape, or the state is not of this mixer and
        batch size.
    """

    @functools.wraps(call)
    def checked_call(self, x_BTD, state=None, *, segment_ids=None, positions=None):
        output = getattr(self, "output", None)
        width = {} if output is None else {"D": output.out_features}
        sizes = checks.arrays(width, x_BTD=x_BTD)
        checks.tokens(sizes, segment_ids=(segment_ids, "BT"), positions=(positions, "BT"))
        if state is not None:
            _check_state(self, state, sizes["B"])
        if 0 in (sizes["B"], sizes["T"]):
            return jnp.zeros(x_BTD.shape, getattr(self, "dtype", x_BTD.dtype)), state
        with checks.no_forward_mode(type(self).__name__, "it has derivatives in reverse mode"):
            return call(self, x_BTD, state, segment_ids=segment_ids, positions=positions)

    return checked_call


def _check_state(mixer, state, batch):
    expected = jax.eval_shape(lambda: mixer.init_state(batch))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(
            f"state is {jax.tree.structure(state)}; init_state of {type(mixer).__name__} makes "
            f"{jax.tree.structure(expected)}"
        )
    leaves = zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True)
    for (path, x), one in leaves:
        if jnp.shape(x) != one.shape:
            name = f"state{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{name} is {jnp.shape(x)}; it must be {one.shape}, as init_state({batch}) makes it"
            )


def reset_rows(state: MixerState, rows_B: Bool[Array, " B"]) -> MixerState:
    """The state of a fresh start in the marked rows, unchanged elsewhere."""

    def reset(x):
        return jnp.where(rows_B.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)

    return jax.tree.map(reset, state)


def require_causal(direction: str) -> None:
    """Raises a ValueError where a state is asked of a mixer that looks ahead."""
    if direction != "causal":
        raise ValueError(f"direction is {direction!r}: only a causal mixer has a state")


def head_width(width: int, heads: int) -> int:
    """Features of each of the heads that `width` is split into.

    Raises:
      ValueError: the heads cannot be of equal width.
    """
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"width is {width}; it must be a positive multiple of heads ({heads})")
    return width // heads
