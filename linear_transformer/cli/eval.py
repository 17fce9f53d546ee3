"""Evaluates a run, or samples from its language model.

linear-transformer-eval --workdir=runs/default --split=test
linear-transformer-eval --workdir=runs/default --prompt="def main():" --num_tokens=200
linear-transformer-eval --config=MINE.py --compile_only --topology=v5e:2x2       does it fit?

In a clone, the same command is `python eval.py`.
"""

from linear_transformer.cli import process


def run() -> None:
    with process.imports():
        process.prepare(__doc__)
        from linear_transformer.cli import evaluating
        from linear_transformer.runtime import program

    program.run(evaluating.main, evaluating.parse)


if __name__ == "__main__":
    run()
