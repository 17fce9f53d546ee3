"""The fixtures of the training loop."""

from tests.training.conftest import compilation_cache, text, unbroken

__all__ = ["compilation_cache", "text", "unbroken"]
