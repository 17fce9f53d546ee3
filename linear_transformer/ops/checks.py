"""Checks of the arguments of public operations, with one-line errors that name the argument.

Each check raises a ValueError before anything is traced, and costs nothing inside `jax.jit`.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Sizes = dict[str, int]


def arrays(sizes: Mapping[str, int] = {}, /, *, kind: type = jnp.floating, **arguments) -> Sizes:
    """Checks that arrays are floating, have the axes of their names and agree on the sizes.

    Args:
      sizes: known sizes by letter, such as {"W": 65}.
      kind: jnp.floating, or jnp.inexact if complex numbers are allowed too.
      arguments: an array under a name that ends in its axes (`q_BTHK=q`), or a pair of an array and
        its axes (`initial_state=(state, "BHKV")`), which is skipped if the array is None.

    Returns:
      The sizes of all letters, including `sizes`.

    Raises:
      ValueError: an argument is not an array, or has a wrong dtype or shape.
    """
    sizes = dict(sizes)
    for name, given in arguments.items():
        is_pair = isinstance(given, tuple)
        x, axes = given if is_pair else (given, name.rpartition("_")[2])
        if not is_pair or x is not None:
            _dtype(name, x, kind, kind.__name__)
            _shape(name, x, axes, sizes)
    return sizes


def tokens(sizes: Mapping[str, int], /, **arguments) -> None:
    """Checks integers and masks of tokens.

    Args:
      sizes: sizes of the axes by letter.
      arguments: see `arrays`; booleans if the name contains "mask", else integers.
    """
    for name, x in arguments.items():
        x, axes = x if isinstance(x, tuple) else (x, name.rpartition("_")[2])
        if x is not None:
            is_mask = "mask" in name
            kind, allowed = (jnp.bool_, "bool") if is_mask else (jnp.integer, "an integer type")
            _dtype(name, x, kind, allowed)
            _shape(name, x, axes, dict(sizes))


def required(**arguments: object) -> None:
    """Checks that arguments, given by name, are not None."""
    for name, x in arguments.items():
        if x is None:
            raise ValueError(f"{name} is None; it must be an array")


def log_decay(x: ArrayLike | None, sizes: Mapping[str, int]) -> None:
    """Checks that a log decay is (H,), (B, T, H) or (B, T, H, K), and at most 0.

    Values are checked only where they are known (not inside `jax.jit`).
    """
    arrays(sizes, log_decay=(x, {1: "H", 3: "BTH"}.get(getattr(x, "ndim", 4), "BTHK")))
    at_most_zero("log_decay", x)


def at_most_zero(name: str, x: ArrayLike | None) -> None:
    """Checks that known values are at most 0."""
    if x is not None and is_known(x):
        x = np.asarray(x, np.float32)
        if np.any(x > 0):
            raise ValueError(f"{name} reaches {np.nanmax(x):.3g}; it must be at most 0")


def is_known(x: ArrayLike) -> bool:
    """Returns whether an array's values can be read: not in `jax.jit`, nor across processes."""
    return not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)


def choice(name: str, value: object, choices: Collection[str]) -> None:
    """Checks that an option is one of its choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


_NUMBERS = (int, float, np.integer, np.floating)


def positive(**options: object) -> None:
    """Checks that options, given by name, are positive numbers; None is skipped."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, _NUMBERS) and value > 0):
            raise ValueError(f"{name} is {value!r}; it must be a positive number")


def counts(least: int = 1, /, **options: object) -> None:
    """Checks that options, given by name, are integers from `least` on; None is skipped."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, int | np.integer) and value >= least):
            raise ValueError(f"{name} is {value!r}; it must be an integer of {least} or more")


def floating(**dtypes: DTypeLike) -> None:
    """Checks that types, given by name, are floating."""
    for name, dtype in dtypes.items():
        if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise ValueError(f"{name} is {jnp.dtype(dtype)}; it must be a floating type")


def state(name: str, x: object, kind: type[tuple]) -> None:
    """Checks that a state is the named tuple that the operation returns, or None."""
    if x is not None and not isinstance(x, kind):
        raise ValueError(f"{name} is a {type(x).__name__}; it must be a {kind.__name__}")


@contextlib.contextmanager
def no_forward_mode(what: str, instead: str) -> Iterator[None]:
    """Context manager that explains JAX's error about the missing `jax.jvp` of `what`."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(f"{what} has no forward mode (jax.jvp, jax.jacfwd): {instead}") from None


def reverse_mode(form: str) -> contextlib.AbstractContextManager[None]:
    """Context manager that explains the missing `jax.jvp` of a form of a recurrence."""
    return no_forward_mode(f"form {form!r}", _MODES)


def differentiable_once(rule: Callable) -> Callable:
    """Wraps a rule of a `jax.custom_vjp`; its own derivative raises NotImplementedError."""

    @jax.custom_jvp
    def once(*operands):
        return rule(*operands)

    @once.defjvp
    def _(*_):
        raise NotImplementedError(f"form 'pallas' is differentiable once: {_MODES}")

    return once


_MODES = (
    "'pallas' has one derivative, in reverse mode (jax.grad, jax.vjp), 'chunk' has all in reverse "
    "mode, and the other forms have all in any mode"
)


def _dtype(name, x, kind, allowed):
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"{name} is a {type(x).__name__}; it must be an array")
    if not jnp.issubdtype(x.dtype, kind):
        raise ValueError(f"{name} is {x.dtype}; it must be {allowed}")


def _shape(name, x, axes, sizes):
    expected = tuple(sizes.get(axis, axis) for axis in axes)
    fits = all(size in (n, axis) for size, n, axis in zip(expected, x.shape, axes, strict=False))
    if x.ndim != len(axes) or not fits:
        sides = ", ".join(map(str, expected))
        raise ValueError(f"{name} is {x.shape}; it must be ({sides}), the axes {axes}")
    sizes.update(zip(axes, x.shape, strict=True))
