"""Command `python -m linear_transformer.papers`, which is `reports/__main__.py`."""

from linear_transformer import reports

__path__ = reports.__path__
