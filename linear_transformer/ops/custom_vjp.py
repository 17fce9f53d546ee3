"""`jax.custom_vjp` as a decorator with arguments."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

_Result = TypeVar("_Result")


def custom_vjp(
    *nondiff_argnums: int,
) -> Callable[[Callable[..., _Result]], jax.custom_vjp[_Result]]:
    """Returns `jax.custom_vjp` with `nondiff_argnums`; type checkers keep the return type."""
    make = functools.partial(jax.custom_vjp, nondiff_argnums=nondiff_argnums)
    return make  # pyright: ignore[reportReturnType] - its __new__ is typed without the result
