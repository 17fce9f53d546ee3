"""The fixtures of the training loop."""

from tests.training.conftest import text, unbroken

__all__ = ["text", "unbroken"]
