"""Settings that must be equal in all processes before anything is compiled."""

import os
from typing import Any

import jax
import ml_collections
from etils import epath

from linear_transformer.config import configuration
from linear_transformer.runtime import environment

# The settings of JAX that change a program or its results.
_SETTINGS = (
    "jax_debug_nans",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def process_settings(config: ml_collections.ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Returns config, run folder, source hash, package versions and settings, by name.

    The dict holds all keys of the config: processes that differ in the number of steps or in the
    mesh would wait for each other for ever.
    """
    keys, _ = jax.tree_util.tree_flatten_with_path(
        configuration.plain(config), is_leaf=lambda value: not isinstance(value, dict)
    )
    return (
        {".".join(["config", *(part.key for part in path)]): value for path, value in keys}
        | {"--workdir": str(workdir)}
        | {f"the version of {name}": version for name, version in environment.versions().items()}
        | {"SHA-256 of linear_transformer's sources": environment.sources()}
        | {f"jax.config.{name}": getattr(jax.config, name) for name in _SETTINGS}
        | {name: _without_dumps(os.environ.get(name, "")) for name in _VARIABLES}
    )


def _without_dumps(options: str) -> str:
    """Removes the flags for XLA dumps, which a single process may set for itself."""
    return " ".join(o for o in options.split() if not o.startswith("--xla_dump"))
