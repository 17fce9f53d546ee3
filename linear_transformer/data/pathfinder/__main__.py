"""Makes Pathfinder images: python -m linear_transformer.data.pathfinder --out=DIR"""

from absl import flags
from etils import epath

from linear_transformer.data.pathfinder.dataset import FOLDERS, write
from linear_transformer.data.pathfinder.paddles import SETTINGS
from linear_transformer.runtime import program


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    flags.DEFINE_integer("size", 32, f"Side in pixels: {', '.join(map(str, SETTINGS))}.")
    flags.DEFINE_string("difficulty", "hard", f"Of contours: {', '.join(FOLDERS)}.")
    flags.DEFINE_integer("images", 200_000, "Number of images.")
    flags.DEFINE_integer("seed", 0, "Another seed makes other images.")
    flags.DEFINE_integer("processes", 2, "That draw at a time.")


def main() -> None:
    values = flags.FLAGS
    folder = write(
        epath.Path(values.out).expanduser(),
        size=values.size,
        difficulty=values.difficulty,
        images=values.images,
        seed=values.seed,
        processes=values.processes,
    )
    print(f"{values.images} images: {folder}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
