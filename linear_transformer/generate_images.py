"""Generates images pixel by pixel, unconditionally or from the upper rows of test images.

python -m linear_transformer.generate_images \
    --workdir=runs/papers/katharopoulos2020/mnist-linear --output=samples.png
python -m linear_transformer.generate_images \
    --workdir=runs/papers/katharopoulos2020/mnist-linear --given_rows=14 --output=completions.png

The program writes a grid of images.  With --given_rows, each row of the grid has a test image, its
given upper rows, and the completions.  It prints images per second, without compilation time.
"""

import dataclasses
import io
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from linear_transformer.data.images.image_batches import ImageSource
from linear_transformer.errors import ConfigError, UserError
from linear_transformer.inference.evaluation import Run
from linear_transformer.inference.generation import decode, prefill
from linear_transformer.ops import logistic_mixture
from linear_transformer.runtime import program
from linear_transformer.tasks.image_generation import ImageGeneration
from linear_transformer.training import run_folder
from linear_transformer.types import PRNGKey

Pixels = UInt8[np.ndarray, "B Y X C"]


@dataclasses.dataclass(frozen=True)
class PixelSampler:
    """Sampler of a channel value from the mixture of logistics that the model predicts."""

    def __call__(self, parameters_BP: Float[Array, "B P"], key: PRNGKey) -> Int[Array, " B"]:
        return logistic_mixture.sample(parameters_BP, key)


def continue_pixels(
    graphdef: nnx.GraphDef,
    parameters: Any,
    given_BT: UInt8[np.ndarray, "B T"],
    length: int,
    seed: int,
) -> UInt8[np.ndarray, "B L"]:
    """Continues images from their first T channel values (T >= 1) to `length` L values each.

    Raises:
      ConfigError: the model's state or positions hold fewer tokens than an image.
    """
    capacity = nnx.merge(graphdef, parameters).capacity
    if capacity is not None and capacity < length:
        raise ConfigError(
            f"an image has {length:,} values, and the model's state or positions hold "
            f"{capacity:,}; train with a larger cache_capacity"
        )
    key = jax.random.key(seed)
    sampler = PixelSampler()
    given = jnp.asarray(given_BT, jnp.int32)
    state, first_B = prefill(graphdef, sampler, parameters, given, jax.random.fold_in(key, 0))
    new = [first_B[:, None]]
    if (left := length - given.shape[1] - 1) > 0:
        loop_key = jax.random.fold_in(key, 1)
        new.append(decode(graphdef, sampler, left, parameters, state, first_B, loop_key)[1])
    return np.concatenate([given, *new], axis=1).astype(np.uint8)


def write_grid(path: epath.Path, rows: list[Pixels]) -> None:
    """Writes a PNG grid; the images of each entry of `rows` are one row of the grid.

    Raises:
      UserError: the file can't be written.
    """
    from matplotlib import image

    padded = [np.pad(row, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=64) for row in rows]
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in padded])
    grid = grid.repeat(2, axis=0).repeat(2, axis=1)
    grid = np.broadcast_to(grid, (*grid.shape[:2], 3))
    encoded = io.BytesIO()
    image.imsave(encoded, grid, format="png")
    try:
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _source(run: Run) -> ImageSource:
    """Returns the images of a run.

    Raises:
      ConfigError: the run has another task.
    """
    if not isinstance(run.task, ImageGeneration):
        raise ConfigError(f"--workdir={run.workdir}: not a run of image_generation")
    return run.task.source


def unconditional(run: Run, count: int, seed: int) -> list[Pixels]:
    """Generates rows of a square grid; each image starts with a training image's first value."""
    source = _source(run)
    images, _ = source.split("train")
    chosen = np.random.default_rng(seed).integers(len(images), size=count)
    first = np.stack([source.read(images[i]).ravel()[:1] for i in chosen])
    drawn = continue_pixels(run.graphdef, run.parameters, first, math.prod(source.shape), seed)
    return np.array_split(drawn.reshape(-1, *source.shape), math.isqrt(count))


def completions(run: Run, count: int, given_rows: int, seed: int) -> list[Pixels]:
    """Completes the first test images; each row has the image, its given rows, 4 completions.

    Raises:
      ConfigError: --given_rows is not less than the height of an image.
    """
    source = _source(run)
    shape = source.shape
    if not 0 < given_rows < shape[0]:
        raise ConfigError(f"--given_rows={given_rows}: an image has {shape[0]} rows")
    items, _ = source.split("test")
    images = np.stack([source.read(item) for item in items[:count]])
    given = np.repeat(images[:, :given_rows].reshape(len(images), -1), 4, axis=0)
    drawn = continue_pixels(run.graphdef, run.parameters, given, math.prod(shape), seed)
    drawn = drawn.reshape(len(images), 4, *shape)
    kept = images * (np.arange(shape[0]) < given_rows)[:, None, None].astype(np.uint8)
    return list(np.concatenate([images[:, None], kept[:, None], drawn], axis=1))


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of image_generation.", required=True)
    flags.DEFINE_string("output", None, "The PNG file to write.", required=True)
    flags.DEFINE_integer("num_images", 36, "Images drawn, or completed.", lower_bound=1)
    flags.DEFINE_integer("given_rows", 0, "Rows of test images to go on from; 0: from nothing.")
    flags.DEFINE_integer("seed", 0, "Seed of the sample.", 0, 2**32 - 1)


def main() -> None:
    values = flags.FLAGS
    output = program.output_path(values.output)
    run = Run.load(run_folder.path_of(values.workdir))

    def draw() -> list[Pixels]:
        if values.given_rows:
            return completions(run, values.num_images, values.given_rows, values.seed)
        return unconditional(run, values.num_images, values.seed)

    draw()  # compiles
    began = time.perf_counter()
    rows = draw()
    seconds = time.perf_counter() - began
    drawn = values.num_images * (4 if values.given_rows else 1)
    write_grid(output, rows)
    print(f"{drawn} images in {seconds:.1f} s, {drawn / seconds:.2f} a second: {values.output}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
