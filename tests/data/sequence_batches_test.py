"""Labelled sequences: cut, padded, every one once an epoch, and images as tokens."""

import types

import numpy as np
import pytest

from linear_transformer.data import sequence_batches
from linear_transformer.data.errors import DataError
from linear_transformer.data.images import image_tokens
from linear_transformer.data.images.datasets import ImageSet
from linear_transformer.data.sequence_batches import (
    SequenceSource,
    evaluation_sequences,
    load_source,
    training_sequences,
)

T = 6


class Words:
    """Example n of a split is n copies of the id n + 1; of its second sequence, 2 n of them."""

    name = "words"
    licence = "none"
    vocab_size = 40
    num_classes = 3
    num_threads = 0

    def __init__(self, sequences_per_example=1):
        self.sequences_per_example = sequences_per_example

    def split(self, name):
        if name not in ("train", "validation", "test"):
            raise DataError(f'unknown split "{name}"')
        items = range(12)
        return items, np.array([n % 3 for n in items], np.int32)

    def read(self, item):
        return tuple(np.full((n + 1) * item, item + 1) for n in range(self.sequences_per_example))


def config_of(dataset, path="", **more):
    data = {"dataset": dataset, "path": str(path), "batch_size": 4, "sequence_length": T} | more
    return types.SimpleNamespace(**data)


@pytest.mark.parametrize("sequences_per_example", [1, 2])
def test_cut_and_padded(sequences_per_example):
    """Zeros behind short sequences, the end of long ones lost; every example once."""
    source = Words(sequences_per_example)
    assert isinstance(source, SequenceSource)
    batches = list(evaluation_sequences(source, "test", batch_size=5, sequence_length=T))
    shapes = {"inputs": (5, T), "lengths": (5,), "labels": (5,), "weights": (5,)}
    if sequences_per_example == 2:
        shapes |= {"inputs": (5, 2, T), "lengths": (5, 2)}
    for batch in batches:
        assert {name: array.shape for name, array in batch.items()} == shapes
        assert [a.dtype for a in batch.values()] == [np.int32] * 3 + [np.float32]
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in shapes}
    np.testing.assert_array_equal(joined["weights"], [1] * 12 + [0] * 3)
    np.testing.assert_array_equal(joined["labels"][:12], [0, 1, 2] * 4)
    shape = (15, sequences_per_example, -1)
    inputs, lengths = (joined[n].reshape(shape) for n in ("inputs", "lengths"))
    for n in range(12):
        for place in range(sequences_per_example):
            length = min((place + 1) * n, T)
            assert lengths[n, place] == length
            np.testing.assert_array_equal(inputs[n, place], [n + 1] * length + [0] * (T - length))


def test_processes_share_the_rows():
    """Two processes with 5 rows each have the batches of one with 10; the second ends in zeros."""
    options = {"sequence_length": T}
    whole = list(evaluation_sequences(Words(), "test", batch_size=10, **options))
    options |= {"batch_size": 5, "process_count": 2}
    parts = [evaluation_sequences(Words(), "test", process_index=i, **options) for i in range(2)]
    for batches, expected in zip(zip(*parts, strict=True), whole, strict=True):
        for name, array in expected.items():
            joined = np.concatenate([batch[name] for batch in batches])
            np.testing.assert_array_equal(joined, array)


def epochs_of(batches, **more):
    options = {"batch_size": 4, "sequence_length": T, "seed": 0} | more
    dataset = iter(training_sequences(Words(), **options))
    return [next(dataset) for _ in range(batches)]


def test_training_visits_every_sequence_once_an_epoch():
    # The first id tells the example, but for the empty one.
    first, second = (
        [int(n) for batch in epochs_of(6)[half] for n in batch["inputs"][:, 0]]
        for half in (slice(3), slice(3, 6))
    )
    assert sorted(first) == sorted(second) == [0, *range(2, 13)]
    assert first != second
    again, other = epochs_of(6), epochs_of(6, seed=1)
    assert [int(n) for batch in again[:3] for n in batch["inputs"][:, 0]] == first
    assert [int(n) for batch in other[:3] for n in batch["inputs"][:, 0]] != first


def test_processes_share_the_sequences():
    alone = [row.tobytes() for batch in epochs_of(6) for row in batch["inputs"]]
    for index in range(2):
        part = epochs_of(3, process_index=index, process_count=2)
        assert [row.tobytes() for batch in part for row in batch["inputs"]] == alone[index::2]


def test_iterator_goes_on():
    dataset = training_sequences(Words(), batch_size=4, sequence_length=T, seed=0)
    batches = iter(dataset)
    next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(4)]
    restored = iter(dataset)
    restored.set_state(state)
    for batch in expected:
        actual = next(restored)
        for name in batch:
            np.testing.assert_array_equal(actual[name], batch[name])


def image_set(images):
    splits = ("train", "validation", "test")
    labels = np.zeros(len(images), np.int32)
    return ImageSet("mnist", "", dict.fromkeys(splits, images), dict.fromkeys(splits, labels))


def test_images_are_grey_rows():
    """28 x 28 in the middle of 32 x 32, row by row; colours by their luma."""
    image = np.random.default_rng(0).integers(1, 256, size=(1, 28, 28, 1), dtype=np.uint8)
    source = image_tokens.GreyImages(image_set(image))
    assert isinstance(source, SequenceSource)
    (tokens,) = source.read(source.split("test")[0][0])
    assert tokens.shape == (1024,)
    square = tokens.reshape(32, 32)
    np.testing.assert_array_equal(square[2:30, 2:30], image[0, ..., 0])
    assert square.astype(int).sum() == image.astype(int).sum()
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [7, 7, 7]]])
    grey = image_tokens.to_grey(colours.astype(np.uint8))
    np.testing.assert_array_equal(grey, [[76, 150, 29, 255, 7]])


def test_mistakes(monkeypatch):
    images = np.zeros((2, 28, 28, 1), np.uint8)
    monkeypatch.setitem(
        sequence_batches.DATASETS, "mnist", lambda _: image_tokens.GreyImages(image_set(images))
    )
    assert load_source(config_of("mnist", sequence_length=1024)).vocab_size == 256
    mistakes = [
        (config_of("mnist", sequence_length=1025), "sequence_length = 1025: an image of mnist has"),
        (config_of("mnist", sequence_length=0), r"config\.data\.sequence_length = 0"),
        (config_of("mnist", batch_size=0), r"config\.data\.batch_size = 0"),
        (config_of("nope"), r'config\.data\.dataset = "nope": unknown; use one of listops, .*aan'),
    ]
    for config, message in mistakes:
        with pytest.raises(DataError, match=message) as raised:
            load_source(config)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"config\.seed = -1"):
        training_sequences(Words(), batch_size=1, sequence_length=T, seed=-1)
    with pytest.raises(DataError, match='unknown split "dev"'):
        next(evaluation_sequences(Words(), "dev", batch_size=1, sequence_length=T))
