"""How hard XLA tries."""

import contextlib

import jax


@contextlib.contextmanager
def compiler_effort(value):
    """At -1, compiling takes a fifth of the time; programs need more memory and read more."""
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", value)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
