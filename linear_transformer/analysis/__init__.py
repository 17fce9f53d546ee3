"""Commands `python -m linear_transformer.analysis.NAME`, which are the files `reports/NAME.py`."""

from linear_transformer import reports

__path__ = reports.__path__
