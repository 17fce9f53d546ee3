"""Drawn images from their structure, and folders that are as they should be, or broken."""

import io

import ml_collections
import numpy as np
import pytest
from etils import epath
from PIL import Image

from linear_transformer.data.errors import DataError
from linear_transformer.data.pathfinder import dataset as pathfinder
from linear_transformer.data.pathfinder.images import draw
from linear_transformer.data.pathfinder.paddles import SETTINGS, Paddles

EASY = pathfinder.CONTOUR_LENGTHS["easy"]
COLUMNS = "imgs/0 sample_0.png 0 1 1.0 6 2 2 0.5 1 1"


@pytest.fixture(scope="module")
def drawn():
    return draw(SETTINGS[32], EASY, 300, np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path):
    """20 images in two batches, image n with level n and 3 x 3 pixels, labels 1, 0, 1, 0, ..."""
    root = tmp_path / "pathfinder32" / "curv_baseline"
    (root / "metadata").mkdir(parents=True)
    for batch, first in (("2", 0), ("10", 10)):
        (root / "imgs" / batch).mkdir(parents=True)
        lines = []
        for n in range(10):
            level = first + n
            Image.new("L", (3, 3), level).save(root / "imgs" / batch / f"sample_{n}.png")
            lines.append(f"imgs/{batch} sample_{n}.png {n} {(n + 1) % 2} 1.0 6 2 2 0.5 1 1\n")
        (root / "metadata" / f"{batch}.npy").write_text("".join(lines))
    return tmp_path / "pathfinder32"


def config_of(path, difficulty="easy"):
    return ml_collections.ConfigDict(
        {"dataset": "pathfinder", "path": str(path), "difficulty": difficulty}
    )


def test_discs_are_on_one_contour_or_on_both(drawn):
    clear = 0
    for label, contours, discs in zip(drawn.labels, drawn.contours, drawn.discs, strict=True):
        first, last = (
            {n for n in range(2) if tuple(contours[n, end, 1:]) == tuple(disc)}
            for end, disc in zip((0, -1), discs, strict=True)
        )
        assert last & (first if label else {1 - n for n in first})
        clear += len(first) == len(last) == 1
    assert clear > 290  # the last paddles may meet: they are not kept apart, as published
    # The standard error is 9 of 300.
    assert 120 < drawn.labels.sum() < 180
    assert len(np.unique(drawn.images, axis=0)) == 300


def test_discs_are_bright(drawn):
    numbers = np.arange(len(drawn.images))
    for end in range(2):
        y, x = drawn.discs[:, end].T
        inside = (y >= 0) & (y < 32) & (x >= 0) & (x < 32)
        assert inside.mean() > 0.98
        levels = drawn.images[numbers[inside], y[inside], x[inside]]
        assert levels.min() > 200
    assert (drawn.images.max((1, 2)) == 255).all()
    # Of the published program: 35 % of the pixels of easy images are not black.
    assert 0.31 < (drawn.images > 0).mean() < 0.38


def test_contours_keep_their_distance(drawn):
    """No paddle may cover what others keep free: one by one, in the order they are placed."""
    paddles = Paddles(SETTINGS[32], 1)
    for contours in drawn.contours[:50]:
        occupied = np.zeros((64, 64), int)  # the image, and 16 pixels on each side
        occupied[16:-16, 16:-16][[0, -1]] = occupied[16:-16, 16:-16][:, [0, -1]] = 255
        masks = np.zeros((2, EASY, 64, 64), int)
        for number in np.ndindex(2, EASY):
            direction, y, x = contours[number]
            masks[number][y + 12 : y + 21, x + 12 : x + 21] = paddles.masks[direction]
        for paddle in range(1, EASY):
            for contour in range(2):
                assert (occupied + masks[contour, paddle]).max() < 1.8 * 255
                occupied = np.maximum(occupied, masks[contour, paddle - 1])


def test_contours_are_connected(drawn):
    """A head is 3 pixels from its pivot, and a pivot 4 from the last; each is rounded."""
    steps = np.diff(drawn.contours[..., 1:, 1:], axis=2)
    distances = np.sqrt((steps**2).sum(-1))
    assert distances.min() > 0 and distances.max() < 8
    assert ((drawn.contours[..., 1:, 1:] > 0) & (drawn.contours[..., 1:, 1:] < 31)).all()


@pytest.mark.parametrize("size", SETTINGS)
def test_sizes(size):
    found = draw(SETTINGS[size], EASY, 2, np.random.default_rng(1))
    assert found.images.shape == (2, size, size) and found.images.dtype == np.uint8
    assert found.contours.shape == (2, 2, EASY, 3)
    assert set(found.gaps) <= set(SETTINGS[size].gaps)


def test_lengths():
    for difficulty, length in pathfinder.CONTOUR_LENGTHS.items():
        found = draw(SETTINGS[32], length, 3, np.random.default_rng(2))
        assert found.contours.shape[2] == length, difficulty


def test_written_images_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(pathfinder, "_BATCH", 12)
    values = {"size": 32, "difficulty": "easy", "images": 20, "processes": 1}
    written = pathfinder.write(epath.Path(tmp_path), seed=7, **values)
    assert written == epath.Path(tmp_path / "pathfinder32" / "curv_baseline")
    expected = [
        draw(SETTINGS[32], EASY, count, np.random.default_rng((7, batch)))
        for batch, count in ((0, 12), (1, 8))
    ]
    pixels = [image.reshape(-1) for part in expected for image in part.images]
    labels = [label for part in expected for label in part.labels]
    source = pathfinder.load(config_of(tmp_path / "pathfinder32"))
    assert (source.vocab_size, source.num_classes, source.size) == (256, 2, 32)
    files = [file for split in pathfinder.SPLITS for file in source.split(split)[0]]
    np.testing.assert_array_equal([source.read(file)[0] for file in files], pixels)
    assert [n for split in pathfinder.SPLITS for n in source.split(split)[1]] == labels
    row = (written / "metadata" / "1.npy").read_text().splitlines()[3]
    assert row == f"imgs/1 sample_3.png 3 {labels[15]} 1.0 6 2 2 0.5 1 1"
    with pytest.raises(DataError, match="has images already"):
        pathfinder.write(epath.Path(tmp_path), seed=0, **values)


@pytest.mark.parametrize("below", ["", "curv_baseline"])
def test_splits_are_in_the_order_of_batches(folder, below):
    source = pathfinder.load(config_of(folder / below))
    for split, levels in (
        ("train", range(16)),
        ("validation", range(16, 18)),
        ("test", range(18, 20)),
    ):
        files, labels = source.split(split)
        assert [source.read(file)[0][0] for file in files] == list(levels)
        assert source.read(files[0])[0].shape == (9,)
        assert labels.tolist() == [(level + 1) % 2 for level in levels]
    with pytest.raises(DataError, match='unknown split "dev"'):
        source.split("dev")


def test_metadata_as_an_array(folder):
    path = folder / "curv_baseline" / "metadata" / "2.npy"
    table = np.array([line.split() for line in path.read_text().splitlines()])
    before = pathfinder.load(config_of(folder))
    np.save(path, table)
    after = pathfinder.load(config_of(folder))
    assert before.files == after.files
    for array, message in ((table[0], "of shape"), (np.zeros((2, 11)), "float64")):
        np.save(path, array)
        with pytest.raises(DataError, match=rf"2\.npy: .*{message}"):
            pathfinder.load(config_of(folder))
    buffer = io.BytesIO()
    np.save(buffer, table)
    path.write_bytes(buffer.getvalue()[:-5])
    with pytest.raises(DataError, match=r"2\.npy: a damaged array"):
        pathfinder.load(config_of(folder))
    np.save(path, np.array([{}], object))
    with pytest.raises(DataError, match=r"2\.npy: a damaged array"):
        pathfinder.load(config_of(folder))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("imgs/2 sample_3.png 3", "row 4 has 3 columns; 11 expected"),
        (f"{COLUMNS} 1", "row 4 has 12 columns; 11 expected"),
        (COLUMNS.replace(" 0 1 ", " 0 2 "), "row 4 has the label '2'; 0 or 1 expected"),
        ("", "row 4 has 0 columns; 11 expected"),
    ],
)
def test_broken_metadata(folder, row, message):
    path = folder / "curv_baseline" / "metadata" / "2.npy"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], row, *lines[4:]]))
    with pytest.raises(DataError, match=rf"2\.npy: {message}"):
        pathfinder.load(config_of(folder))


def test_an_image_with_two_labels(folder):
    """A table may repeat the rows of another one, but must not contradict them."""
    tables = folder / "curv_baseline" / "metadata"
    before = pathfinder.load(config_of(folder))
    rows = (tables / "2.npy").read_text()
    (tables / "3.npy").write_text(rows)
    assert pathfinder.load(config_of(folder)).files == before.files
    (tables / "3.npy").write_text(rows.replace(" 7 0 1.0", " 7 1 1.0"))
    with pytest.raises(DataError, match=r"imgs/2/sample_7\.png has the label 0 and the label 1"):
        pathfinder.load(config_of(folder))


def test_broken_images(folder):
    source = pathfinder.load(config_of(folder))
    files, _ = source.split("train")
    root = folder / "curv_baseline"
    (root / files[1]).unlink()
    (root / files[2]).write_bytes((root / files[2]).read_bytes()[:50])
    (root / files[3]).write_bytes(b"no image at all")
    (root / files[4]).write_bytes(b"")
    Image.new("L", (4, 3)).save(root / files[5])
    for number, message in (
        (1, "cannot be read"),
        (2, "not an image, or damaged"),
        (3, "not an image, or damaged"),
        (4, "the file is empty"),
        (5, "4 x 3 pixels, and other images have 3 x 3"),
    ):
        with pytest.raises(DataError, match=rf"sample_{number}\.png: {message}") as error:
            source.read(files[number])
        assert "\n" not in str(error.value)


def test_published_file_without_content_is_skipped(folder):
    root = folder / "curv_baseline"
    (root / "imgs" / "2").rename(root / "imgs" / "0")
    (root / "imgs" / "0" / "sample_4.png").rename(root / "imgs" / "0" / "sample_172.png")
    text = (root / "metadata" / "2.npy").read_text().replace("imgs/2", "imgs/0")
    (root / "metadata" / "0.npy").write_text(text.replace("sample_4", "sample_172"))
    (root / "metadata" / "2.npy").unlink()
    assert len(pathfinder.load(config_of(folder)).split("train")[0]) == 16
    (root / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    source = pathfinder.load(config_of(folder))
    files = [file for split in pathfinder.SPLITS for file in source.split(split)[0]]
    assert len(files) == 19 and "imgs/0/sample_172.png" not in files


def test_missing(folder, tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.path .*python -m linear_transformer"):
        pathfinder.load(config_of(""))
    with pytest.raises(DataError, match=r'config\.data\.difficulty = "hardest"'):
        pathfinder.load(config_of(folder, "hardest"))
    with pytest.raises(DataError, match=r"no folder .*curv_contour_length_14/metadata"):
        pathfinder.load(config_of(folder, "hard"))
    with pytest.raises(DataError, match=r"not hard, which is curv_contour_length_14"):
        pathfinder.load(config_of(folder / "curv_baseline", "hard"))
    for path in (folder / "curv_baseline" / "metadata").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="0 images; at least 10 are needed"):
        pathfinder.load(config_of(folder))


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"size": 48}, "--size=48: use one of 32, 64, 128, 256"),
        ({"difficulty": "x"}, "--difficulty=x"),
        ({"images": 0}, "--images=0"),
        ({"seed": -1}, "--seed=-1"),
        ({"processes": 0}, "--processes=0"),
    ],
)
def test_wrong_flags(tmp_path, wrong, flag):
    values = {"size": 32, "difficulty": "easy", "images": 1, "seed": 0, "processes": 1} | wrong
    with pytest.raises(DataError, match=flag):
        pathfinder.write(epath.Path(tmp_path), **values)
