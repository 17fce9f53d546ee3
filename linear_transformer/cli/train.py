"""Trains the experiment that a config describes.

linear-transformer-train                                   the quick start, on a CPU in minutes
linear-transformer-train --config=configs/lm/shakespeare.py:softmax --config.num_steps=500
linear-transformer-train --config=MINE.py --workdir=DIR    run again: continues a stopped run
linear-transformer-train --distributed=auto --workdir=gs://BUCKET/RUN    on every worker of a slice
linear-transformer-train --config=MINE.py --compile_only --topology=v5e:4x4      does it fit?

In a clone, the same command is `python train.py`.
"""

from linear_transformer.cli import process


def run() -> None:
    with process.imports():
        process.prepare(__doc__)
        from linear_transformer.cli import training
        from linear_transformer.runtime import program

    program.run(training.main, training.parse)


if __name__ == "__main__":
    run()
