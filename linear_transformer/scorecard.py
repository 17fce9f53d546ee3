"""Command `python -m linear_transformer.scorecard`, see `reports/scorecard.py`."""

from linear_transformer.config import shipped_configs
from linear_transformer.runtime import program

if __name__ == "__main__":
    shipped_configs.make_importable()
    from linear_transformer.reports import scorecard

    scorecard.define_flags()
    program.run(scorecard.main)
