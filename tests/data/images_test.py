"""Image files that the tests write: MNIST's IDX, CIFAR-10's records, folders of photographs."""

import gzip
import struct

import grain
import ml_collections
import numpy as np
import pytest
from PIL import Image

from linear_transformer.data.errors import DataError
from linear_transformer.data.images import datasets as images, image_folder
from linear_transformer.data.images.image_batches import (
    Augmentation,
    ImageSource,
    evaluation_images,
    load_source,
    training_images,
)

AS_THEY_ARE = Augmentation(flip=False, padding=0)


def config_of(dataset, path, **more):
    return ml_collections.ConfigDict({"dataset": dataset, "path": str(path), **more})


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """30 + 8 images of 5 x 4 pixels, number n filled with n, its label n mod 10."""
    for prefix, count, suffix in (("train", 30, ".gz"), ("t10k", 8, "")):
        numbers = np.arange(count, dtype=np.uint8)
        pixels = np.broadcast_to(numbers[:, None, None], (count, 5, 4))
        for name, array in (("images-idx3", pixels), ("labels-idx1", numbers % 10)):
            data = idx(array)
            path = tmp_path / f"{prefix}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return tmp_path


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


@pytest.fixture
def folder(tmp_path):
    """Two classes of one colour each; 3 + 2 images of 40 x 30 pixels."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (200 * label, 100, 10 * number)
                path = tmp_path / part / name / f"{number}.JPEG"
                Image.new("RGB", (40, 30), colour).save(path, quality=95)
    return tmp_path


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


def epochs_of(source, count, **more):
    """The pixels and labels of `count` batches of 5."""
    batches = iter(training_images(source, AS_THEY_ARE, batch_size=5, **more))
    return [next(batches) for _ in range(count)]


def test_training_visits_every_image_once_an_epoch(mnist):
    source = load_source(config_of("mnist", mnist))
    batches = epochs_of(source, 6, seed=0)
    first, second = (
        [int(n) for batch in batches[half] for n in batch["images"][:, 0, 0, 0]]
        for half in (slice(3), slice(3, 6))
    )
    assert sorted(first) == sorted(second) == list(range(15))
    assert first != second
    for batch in batches:
        np.testing.assert_array_equal(batch["labels"], batch["images"][:, 0, 0, 0] % 10)
        assert (batch["weights"] == 1).all()
    again, other = epochs_of(source, 6, seed=0), epochs_of(source, 6, seed=1)
    np.testing.assert_array_equal(again[4]["images"], batches[4]["images"])
    assert any((a["labels"] != b["labels"]).any() for a, b in zip(other, batches, strict=True))


def test_processes_share_the_images(mnist):
    """Together they see the views that one process sees."""
    source = load_source(config_of("mnist", mnist))
    augmentation = Augmentation(flip=True, padding=2)

    def views(count, index, batches):
        dataset = iter(
            training_images(
                source,
                augmentation,
                batch_size=5,
                seed=3,
                process_index=index,
                process_count=count,
            )
        )
        return [image.tobytes() for _ in range(batches) for image in next(dataset)["images"]]

    alone = views(1, 0, 6)
    assert alone[0::2] == views(2, 0, 3)
    assert alone[1::2] == views(2, 1, 3)


@pytest.mark.parametrize("dataset", ["mnist", "image_folder"])
def test_iterator_goes_on(mnist, folder, dataset):
    """Saved after two batches and restored, it yields what it would have."""
    path = {"mnist": mnist, "image_folder": folder}[dataset]
    source = load_source(config_of(dataset, path, image_size=8))
    make = training_images(source, Augmentation(flip=True, padding=1), batch_size=4, seed=0)
    batches = iter(make)
    for _ in range(2):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(3)]
    restored = iter(make)
    assert isinstance(restored, grain.DatasetIterator)
    restored.set_state(state)
    for batch in expected:
        actual = next(restored)
        for name in batch:
            np.testing.assert_array_equal(actual[name], batch[name])


def test_augmentation():
    """Flips half of the time; a crop is a shift by at most the padding, with black around."""
    image = np.arange(1, 21, dtype=np.uint8).reshape(5, 4, 1)
    rng = np.random.default_rng(0)
    flipped = [Augmentation(flip=True, padding=0)(image, rng) for _ in range(100)]
    mirrored = sum(np.array_equal(f, image[:, ::-1]) for f in flipped)
    assert mirrored + sum(np.array_equal(f, image) for f in flipped) == 100
    assert 30 < mirrored < 70
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[y : y + 5, x : x + 4].tobytes(): (y, x) for y in range(5) for x in range(5)}
    seen = {crops[Augmentation(flip=False, padding=2)(image, rng).tobytes()] for _ in range(400)}
    assert len(seen) == len(crops) == 25
    np.testing.assert_array_equal(AS_THEY_ARE(image, rng), image)


def test_last_batch_is_filled_up(mnist):
    """8 images in batches of 3: one row of weight 0, and every image once."""
    source = load_source(config_of("mnist", mnist))
    batches = list(evaluation_images(source, "test", batch_size=3))
    assert {batch["images"].shape for batch in batches} == {(3, 5, 4, 1)}
    weights = np.concatenate([batch["weights"] for batch in batches])
    numbers = np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches])
    np.testing.assert_array_equal(weights, [1] * 8 + [0])
    np.testing.assert_array_equal(numbers[weights > 0], range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"config\.data\.batch_size = 0"),
        ({"seed": -1}, r"config\.seed = -1"),
        ({"seed": 2**32}, r"config\.seed = 4294967296"),
    ],
)
def test_values_out_of_range(mnist, changes, message):
    source = load_source(config_of("mnist", mnist))
    with pytest.raises(DataError, match=message):
        training_images(source, AS_THEY_ARE, **{"batch_size": 2, "seed": 0} | changes)
    with pytest.raises(DataError, match=r"config\.data\.padding = -1"):
        Augmentation(flip=True, padding=-1)


def test_held_out_images():
    """The validation split is the end of the training half, of 5,000 images where there are."""
    labels = {"train": np.arange(60_000), "test": np.arange(10)}
    pixels = {split: np.zeros((len(x), 1, 1, 1), np.uint8) for split, x in labels.items()}
    held = images._hold_out("mnist", "", pixels, labels).labels
    assert [len(held[name]) for name in ("train", "validation", "test")] == [55_000, 5_000, 10]
    assert held["validation"][0] == 55_000
