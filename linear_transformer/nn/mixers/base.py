"""Interface of token mixers, and the checks of their arguments.

    y_BTD, state = mixer(x_BTD, state=None, *, segment_ids=None, positions=None)

One call serves training (no state in or out), prefill (a state and many tokens) and decoding (a
state and one token).  A module stores nothing between calls.  `init_state(batch_size)` is a pytree
of zeros with the batch as first axis, so a row is reset by setting it to zero.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypedDict, get_args, get_type_hints

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from linear_transformer.ops import checks
from linear_transformer.types import Activations, Positions, SegmentIds

MixerState = Any


class Places(TypedDict, total=False):
    """Segment and position of each token, as arguments of a mixer."""

    segment_ids: SegmentIds | None
    positions: Positions | None


def checked(call: Callable) -> Callable:
    """Decorates the `__call__` of a mixer with checks of its arguments.

    An input without rows or tokens gives an empty output and leaves the state unchanged.

    Raises:
      ValueError: an argument has a wrong type or shape, or the state does not fit the mixer or the
        batch size.
    """

    @functools.wraps(call)
    def checked_call(self, x_BTD, state=None, *, segment_ids=None, positions=None, **values):
        output = getattr(self, "output", None)
        width = {} if output is None else {"D": output.out_features}
        given = {name: x for name, x in values.items() if x is not None}
        sizes = checks.arrays(width, x_BTD=x_BTD, **given)
        checks.tokens(sizes, segment_ids=(segment_ids, "BT"), positions=(positions, "BT"))
        if state is not None:
            require_causal(self.direction)
            _check_state(self, state, sizes["B"])
        if segment_ids is not None:  # a state keeps them in this type
            segment_ids = jnp.asarray(segment_ids, jnp.int32)
        if 0 in (sizes["B"], sizes["T"]):
            return jnp.zeros(x_BTD.shape, getattr(self, "dtype", x_BTD.dtype)), state
        with checks.no_forward_mode(type(self).__name__, "it has derivatives in reverse mode"):
            places = {"segment_ids": segment_ids, "positions": positions}
            return call(self, x_BTD, state, **places, **values)

    return checked_call


class Mixer(nnx.Module):
    """Base class of token mixers; see the docstring of this file.

    A subclass defines `flops_per_token` and `_forward(x, state, segment_ids, positions) -> (y,
    state)`, and `_init_state` if it can be causal.

    Attributes:
      mechanisms: mechanisms of this class, made by the decorator `mechanism.mechanism`.
      capacity: most tokens that a state can process; None is no limit.
      direction: "causal", or another value for a mixer without a state.
      value_residual: whether the mixer defines `first_values`, and takes those of the first layer
        of a stack as the argument `first_BTI`; without the argument the mixer is the first layer.
    """

    mechanisms: ClassVar[tuple[Any, ...]] = ()
    capacity: int | None = None
    direction: str = "causal"
    value_residual: bool = False

    def __new__(cls, *arguments: Any, **options: Any):
        for name in options:  # `**options` of a constructor takes any name
            if name not in parameters(cls):
                raise TypeError(f"{cls.__name__} has no option {name!r}")
        positional = [name for name in parameters(cls) if name != "self"]
        given = dict(zip(positional, arguments, strict=False)) | options
        checks.counts(width=given.get("width"), heads=given.get("heads"))
        checks.floating(dtype=given.get("dtype", jnp.float32))
        return super().__new__(cls)

    def init_state(self, batch_size: int) -> MixerState:
        """Returns the state before the first token."""
        require_causal(self.direction)
        checks.counts(0, batch_size=batch_size)
        return self._init_state(batch_size)

    @checked
    def __call__(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        positions: Positions | None = None,
        **values: Float[Array, "B T I"] | None,
    ) -> tuple[Activations, MixerState | None]:
        return self._forward(x_BTD, state, segment_ids, positions, **values)

    def first_values(
        self,
        x_BTD: Activations,
        state: MixerState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
    ) -> Float[Array, "B T I"]:
        """Returns the values of the call with the same arguments, for the layers after this one."""
        raise NotImplementedError

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token in the forward pass, without projections; a multiply-add is two.

        Args:
          context: length of the sequence in tokens.
        """
        raise NotImplementedError

    def _init_state(self, batch_size: int) -> MixerState:
        raise NotImplementedError

    def _forward(
        self,
        x_BTD: Activations,
        state: MixerState | None,
        segment_ids: SegmentIds | None,
        positions: Positions | None,
        **values: Float[Array, "B T I"] | None,
    ) -> tuple[Activations, MixerState | None]:
        raise NotImplementedError


@functools.cache
def parameters(mixer: type) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a mixer's constructor by name.

    `**options: Unpack[Options]` stands for those parameters of the next base class that have the
    names in `Options`.
    """
    owner = next(cls for cls in mixer.__mro__ if "__init__" in vars(cls))
    found = dict(inspect.signature(owner.__init__).parameters)
    last = next(reversed(found))
    if found[last].kind is inspect.Parameter.VAR_KEYWORD:
        (options,) = get_args(found.pop(last).annotation)
        inherited = parameters(owner.__mro__[1])
        found |= {name: inherited[name] for name in get_type_hints(options)}
    return found


def _check_state(mixer, state, batch):
    expected = jax.eval_shape(lambda: mixer.init_state(batch))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(
            f"state is {jax.tree.structure(state)}; init_state of {type(mixer).__name__} makes "
            f"{jax.tree.structure(expected)}"
        )
    leaves = zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True)
    for (path, x), one in leaves:
        name = f"state{jax.tree_util.keystr(path)}"
        kind = jnp.integer if jnp.issubdtype(one.dtype, jnp.integer) else jnp.floating
        if not jnp.issubdtype(dtype := jnp.result_type(x), kind):
            raise ValueError(f"{name} is {dtype}; it must be {kind.__name__}, as init_state has it")
        if jnp.shape(x) != one.shape:
            raise ValueError(
                f"{name} is {jnp.shape(x)}; it must be {one.shape}, as init_state({batch}) makes it"
            )


def reset_rows(state: MixerState, rows_B: Bool[Array, " B"]) -> MixerState:
    """Returns the state with the marked rows reset to the state before the first token."""

    def reset(x):
        return jnp.where(rows_B.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)

    return jax.tree.map(reset, state)


def require_causal(direction: str) -> None:
    """Raises a ValueError unless the mixer is causal, because only a causal mixer has a state."""
    if direction != "causal":
        raise ValueError(f"direction is {direction!r}: only a causal mixer has a state")


def head_width(width: int, heads: int) -> int:
    """Number of features of each head.

    Raises:
      ValueError: `width` is not a positive multiple of `heads`.
    """
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"width is {width}; it must be a positive multiple of heads ({heads})")
    return width // heads
