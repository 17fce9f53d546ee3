"""Shapes and types of every public signature are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("linear_transformer", "beartype.beartype")
