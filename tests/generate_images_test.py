"""Images drawn from a model, and the grids of them."""

import numpy as np
import pytest
from etils import epath
from matplotlib import image

from configs.papers.katharopoulos2020 import mnist
from linear_transformer import generate_images
from linear_transformer.data.images import datasets as images
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run
from linear_transformer.training.loop import train

SIDE = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step on images of 6 x 6."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for count, (pictures, labels) in zip((40, 9), images._IDX_NAMES.values(), strict=True):
        shape = (count, SIDE, SIDE)
        header = b"\0\0\x08\x03" + np.array(shape, ">u4").tobytes()
        (folder / pictures).write_bytes(header + rng.integers(0, 256, shape, np.uint8).tobytes())
        header = b"\0\0\x08\x01" + np.array(count, ">u4").tobytes()
        (folder / labels).write_bytes(header + rng.integers(0, 10, count, np.uint8).tobytes())
    config = mnist.get_config("linear,small")
    config.data.update(path=str(folder), batch_size=2, sequence_length=SIDE * SIDE - 1)
    config.model.update(width=16, num_layers=1, num_heads=2, feed_forward_width=16)
    config.update(num_steps=1, log_every=1, eval_every=1, checkpoint_every=1)
    train(config, epath.Path(folder / "run"))
    return Run.load(epath.Path(folder / "run"))


def test_completions_keep_what_is_given(run):
    rows = generate_images.completions(run, 3, 2, seed=0)
    assert [row.shape for row in rows] == [(6, SIDE, SIDE, 1)] * 3
    test_images, _ = run.task.source.split("test")
    for original, (whole, given, *drawn) in zip(test_images, rows, strict=False):
        np.testing.assert_array_equal(whole, original)
        np.testing.assert_array_equal(given[:2], original[:2])
        assert np.all(given[2:] == 0)
        for image_drawn in drawn:
            np.testing.assert_array_equal(image_drawn[:2], original[:2])
        assert len({d.tobytes() for d in drawn}) == 4  # each is a draw of its own


def test_drawing_again_gives_the_same(run):
    first, again, other = (
        np.concatenate(generate_images.unconditional(run, 4, s)) for s in (0, 0, 1)
    )
    assert first.shape == (4, SIDE, SIDE, 1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_grid(run, tmp_path):
    rows = generate_images.unconditional(run, 4, 0)
    generate_images.write_grid(epath.Path(tmp_path / "a.png"), rows)
    grid = image.imread(tmp_path / "a.png")
    assert grid.shape[:2] == (4 * (SIDE + 2), 4 * (SIDE + 2))
    np.testing.assert_allclose(grid[2:-2:2, 2:-2:2, 0][:SIDE, :SIDE] * 255, rows[0][0, ..., 0])


def test_mistakes(run):
    with pytest.raises(ConfigError, match="--given_rows=6: an image has 6 rows"):
        generate_images.completions(run, 1, 6, 0)
