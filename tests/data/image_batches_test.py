"""Batches of images: their order, shares of processes, augmentation and last rows."""

import grain
import numpy as np
import pytest

from linear_transformer.data.errors import DataError
from linear_transformer.data.images.image_batches import (
    Augmentation,
    evaluation_images,
    load_source,
    training_images,
)
from tests.data.image_files import AS_THEY_ARE, config_of


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
