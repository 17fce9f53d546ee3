"""Image files that the tests write: MNIST's IDX, CIFAR-10's records, folders of photographs."""

import gzip

import numpy as np
import pytest
from PIL import Image

from linear_transformer.data.errors import DataError
from linear_transformer.data.images import datasets as images, image_folder
from linear_transformer.data.images.image_batches import (
    ImageSource,
    evaluation_images,
    load_source,
    training_images,
)
from tests.data.image_files import AS_THEY_ARE, config_of, idx


@pytest.fixture
def cifar(tmp_path):
    """Four images a file, of random colours."""
    rng = np.random.default_rng(0)
    expected = {}
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        expected[name] = rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    expected["test_batch"] = rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    for name, pixels in expected.items():
        records = [bytes([label]) + image.tobytes() for label, image in enumerate(pixels)]
        (tmp_path / f"{name}.bin").write_bytes(b"".join(records))
    return tmp_path, expected


def folder_config(path, size=8):
    return config_of("image_folder", path, image_size=size)


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_idx(mnist, dataset):
    source = load_source(config_of(dataset, mnist))
    assert isinstance(source, ImageSource)
    assert source.shape == (5, 4, 1)
    numbers = {"train": range(15), "validation": range(15, 30), "test": range(8)}
    for split, expected in numbers.items():
        pixels, labels = source.split(split)
        assert pixels.shape == (len(expected), 5, 4, 1)
        np.testing.assert_array_equal(pixels[:, 2, 3, 0], expected)
        np.testing.assert_array_equal(labels, np.array(expected) % 10)


def test_cifar10(cifar):
    path, expected = cifar
    source = load_source(config_of("cifar10", path))
    assert source.shape == (32, 32, 3)
    train = np.concatenate([expected[f"data_batch_{n}"] for n in range(1, 6)])
    pixels, labels = (
        np.concatenate(parts)
        for parts in zip(source.split("train"), source.split("validation"), strict=True)
    )
    np.testing.assert_array_equal(pixels, train.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(labels, np.tile(np.arange(4), 5))
    np.testing.assert_array_equal(
        source.split("test")[0], expected["test_batch"].transpose(0, 2, 3, 1)
    )


TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


def shortened(data):
    return data[:-1]


def relabelled(data):
    """The last label is 10."""
    return data[:-1] + bytes([10])


def with_magic(data):
    """Signed integers instead of unsigned bytes."""
    return bytes([0, 0, 12]) + data[3:]


def one_label(data):
    del data
    return idx(np.zeros(1, np.uint8))


def no_labels(data):
    del data
    return idx(np.zeros(0, np.uint8))


def garbled(data):
    """A gzip header, then anything."""
    return gzip.compress(data)[:10] + b"\xff" * 20


BROKEN_IDX = {
    "short": (TRAIN_IMAGES, shortened, r"599 bytes of data, and the header says \(30, 5, 4\)"),
    "magic": (TRAIN_IMAGES, with_magic, "not an IDX file of unsigned bytes"),
    "header": (TRAIN_IMAGES, lambda data: data[:9], "the header is cut short"),
    "empty": (TRAIN_IMAGES, lambda data: b"", "not an IDX file of unsigned bytes"),
    "truncated gzip": (TRAIN_IMAGES, lambda data: gzip.compress(data)[:-12], "cannot be unzipped"),
    "garbled gzip": (TRAIN_LABELS, garbled, "cannot be unzipped"),
    "label": (TRAIN_LABELS, relabelled, "label 10 of image 29; at most 9"),
    "lengths": (TRAIN_LABELS, one_label, r"shapes \(30, 5, 4\) and \(1,\)"),
    "no labels": (TRAIN_LABELS, no_labels, r"shapes \(30, 5, 4\) and \(0,\)"),
}


@pytest.mark.parametrize("case", BROKEN_IDX)
def test_broken_idx(mnist, case):
    name, change, message = BROKEN_IDX[case]
    data = gzip.decompress((mnist / f"{name}.gz").read_bytes())
    (mnist / name).write_bytes(change(data))  # taken before the zipped one
    with pytest.raises(DataError, match=f"{name}.*{message}") as raised:
        load_source(config_of("mnist", mnist))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("count", "side", "message"),
    [(1, 5, "mnist: one image to train on"), (30, 6, r"different sizes, .*\(6, 4\).*\(5, 4\)")],
)
def test_idx_files_that_do_not_make_a_data_set(mnist, count, side, message):
    for name, array in (
        (TRAIN_IMAGES, np.zeros((count, side, 4), np.uint8)),
        (TRAIN_LABELS, np.zeros(count, np.uint8)),
    ):
        (mnist / name).write_bytes(idx(array))
    with pytest.raises(DataError, match=message):
        load_source(config_of("mnist", mnist))


def test_a_batch_of_cifar10_that_is_another_one(cifar):
    """The last tenth is the validation split, so a batch that comes twice would be in two."""
    path = cifar[0] / "data_batch_5.bin"
    path.unlink()
    path.symlink_to("data_batch_1.bin")
    with pytest.raises(DataError, match=r"two of data_batch_1.bin, .* are the same"):
        load_source(config_of("cifar10", cifar[0]))


BROKEN_CIFAR = {
    "short": (shortened, r"data_batch_2\.bin: 12291 bytes are not a multiple of 3073"),
    "empty": (lambda data: b"", r"data_batch_2\.bin: 0 bytes"),
    "label": (lambda data: b"\x0a" + data[1:], r"data_batch_2\.bin: label 10 of image 0"),
}


@pytest.mark.parametrize("case", BROKEN_CIFAR)
def test_broken_cifar10(cifar, case):
    change, message = BROKEN_CIFAR[case]
    path = cifar[0] / "data_batch_2.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as raised:
        load_source(config_of("cifar10", cifar[0]))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("dataset", "path", "message"),
    [
        ("mnist", "nowhere", rf"no file {TRAIN_IMAGES} or {TRAIN_IMAGES}\.gz in it"),
        ("cifar10", "nowhere", r"no file data_batch_1\.bin in it"),
        ("cifar10", "", r'config\.data\.path = "": cifar10 needs'),
        ("image_folder", "", r"config\.data\.path is empty: image_folder needs"),
        ("image_folder", "nowhere", "no such file or folder"),
        ("nope", "", r'config\.data\.dataset = "nope": unknown; use one of mnist, .*image_folder'),
    ],
)
def test_missing(dataset, path, message):
    with pytest.raises(DataError, match=message) as raised:
        load_source(config_of(dataset, path, image_size=8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dataset", ["mnist", "image_folder"])
def test_unknown_split(mnist, folder, dataset):
    path = {"mnist": mnist, "image_folder": folder}[dataset]
    source = load_source(config_of(dataset, path, image_size=8))
    with pytest.raises(DataError, match=f'unknown split "dev" of {dataset}: use train, validation'):
        next(evaluation_images(source, "dev", batch_size=2))


def test_folder(folder):
    """Classes in the order of their names; a PNG in grey is an image like any other."""
    Image.new("L", (9, 20), 77).save(folder / "val" / "bee" / "9.png")
    source = load_source(folder_config(folder))
    assert isinstance(source, ImageSource)
    assert source.classes == ("ant", "bee")
    assert source.shape == (8, 8, 3)
    assert [len(source.split(split)[0]) for split in ("train", "validation")] == [6, 5]
    np.testing.assert_array_equal(source.split("validation")[1], [0, 0, 1, 1, 1])
    batch = next(evaluation_images(source, "validation", batch_size=5))
    assert batch["images"].shape == (5, 8, 8, 3)
    assert batch["images"].dtype == np.uint8
    assert (batch["images"][4] == 77).all()
    colours = [(0, 100, 0), (0, 100, 10), (200, 100, 0), (200, 100, 10)]
    for image, colour in zip(batch["images"], colours, strict=False):
        assert np.abs(image.astype(int) - colour).max() <= 3  # of JPEG


def test_views_of_a_folder(tmp_path):
    """Pixels that say where they are: the middle for evaluation, any box for training."""
    columns, rows = 224, 112
    ramp = np.zeros((rows, columns, 3), np.uint8)
    ramp[..., 0] = np.arange(columns)
    ramp[..., 1] = np.arange(rows)[:, None]
    for part in ("train", "val"):
        (tmp_path / part / "c").mkdir(parents=True)
        Image.fromarray(ramp).save(tmp_path / part / "c" / "ramp.png")
    side = 98  # 112 * 224 / 256
    source = load_source(folder_config(tmp_path, size=side))
    (file,), _ = source.split("validation")
    np.testing.assert_array_equal(source.read(file), ramp[7:105, 63:161])
    areas, ratios = [], []
    for seed in range(200):
        left, upper, right, lower = image_folder.random_box(
            columns, rows, np.random.default_rng(seed)
        )
        assert 0 <= left < right <= columns
        assert 0 <= upper < lower <= rows
        areas.append((right - left) * (lower - upper) / (columns * rows))
        ratios.append((right - left) / (lower - upper))
    assert 0.075 < min(areas) < 0.1
    assert max(areas) > 0.55
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.36
    views = [source.read(file, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


def test_no_box_fits():
    """One pixel high and long: the middle."""
    assert image_folder.random_box(900, 1, np.random.default_rng(0)) == (
        image_folder.central_box(900, 1)
    )


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def text(path):
    path.write_text("not found")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("breaks", [truncated, text, empty])
def test_broken_image(folder, breaks):
    """One line that names the file, from the threads of the pipeline too."""
    source = load_source(folder_config(folder))
    breaks(folder / "train" / "bee" / "1.JPEG")
    with pytest.raises(DataError, match=r"bee/1\.JPEG: ") as raised:
        for batch in training_images(source, AS_THEY_ARE, batch_size=6, seed=0):
            del batch
    assert "\n" not in str(raised.value)


def test_broken_folders(folder):
    (folder / "val" / "cat").mkdir()
    with pytest.raises(DataError, match=r"val/cat: no \.jpeg, \.jpg, \.png file in it"):
        load_source(folder_config(folder))
    Image.new("RGB", (9, 9)).save(folder / "val" / "cat" / "1.jpg")
    with pytest.raises(DataError, match="class cat is in only one of train and val"):
        load_source(folder_config(folder))
    with pytest.raises(DataError, match=r"config\.data\.image_size = 0"):
        load_source(folder_config(folder, size=0))
    (folder / "val").rename(folder / "test")
    with pytest.raises(DataError, match="val: no such folder"):
        load_source(folder_config(folder))
    (folder / "val").mkdir()
    with pytest.raises(DataError, match="val: no folder of a class in it"):
        load_source(folder_config(folder))


def test_held_out_images():
    """The validation split is the end of the training half, of 5,000 images where there are."""
    labels = {"train": np.arange(60_000), "test": np.arange(10)}
    pixels = {split: np.zeros((len(x), 1, 1, 1), np.uint8) for split, x in labels.items()}
    held = images._hold_out("mnist", "", pixels, labels).labels
    assert [len(held[name]) for name in ("train", "validation", "test")] == [55_000, 5_000, 10]
    assert held["validation"][0] == 55_000
