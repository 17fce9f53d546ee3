"""Makes ListOps trees: python -m linear_transformer.data.listops --out=DIR"""

from absl import flags
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.listops.dataset import FILES, FOLDER, write
from linear_transformer.data.listops.trees import Shape, distinct_trees
from linear_transformer.runtime import program


def _define_flags() -> None:
    shape = Shape()
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_integer("train", 96_000, "Trees for training.")
    flags.DEFINE_integer("validation", 2_000, "Trees for validation.")
    flags.DEFINE_integer("test", 2_000, "Trees for the test.")
    flags.DEFINE_integer("min_length", shape.min_length, "All trees have more tokens than this.")
    flags.DEFINE_integer("max_length", shape.max_length, "All trees have fewer tokens than this.")
    flags.DEFINE_integer("max_depth", shape.max_depth, "Of nested lists, the digits counted.")
    flags.DEFINE_integer("max_args", shape.max_args, "Of an operator.")
    flags.DEFINE_integer("seed", 0, "Another seed makes other trees.")
    flags.DEFINE_integer("processes", 2, "That make trees at a time.")


def main() -> None:
    values = flags.FLAGS
    counts = {split: getattr(values, split) for split in FILES}
    for split, count in counts.items():
        if count < 1:
            raise DataError(f"--{split}={count}: must be at least 1")
    shape = Shape(
        min_length=values.min_length,
        max_length=values.max_length,
        max_depth=values.max_depth,
        max_args=values.max_args,
    )
    out = epath.Path(values.out).expanduser()
    write(out, counts, distinct_trees(shape, values.seed, values.processes))
    print(f"{', '.join(f'{count} {split}' for split, count in counts.items())}: {out / FOLDER}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
