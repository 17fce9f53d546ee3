"""Images as sequences of pixels: every channel value a token, row by row."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import UInt8

from linear_transformer.data.images import ImageSet
from linear_transformer.data.stream import Batch, check_shape

_EPOCHS = 2**32  # as good as endless
_READ_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def pixel_batch(images_NYXC: UInt8[np.ndarray, "N Y X C"]) -> Batch:
    """`inputs`, all pixels but the last, `targets`, all but the first, and `weights` of 1."""
    pixels = images_NYXC.reshape(len(images_NYXC), -1).astype(np.int32)
    weights = np.ones((len(pixels), pixels.shape[1] - 1), np.float32)
    return {"inputs": pixels[:, :-1], "targets": pixels[:, 1:], "weights": weights}


def training_pixels(
    images: ImageSet, *, batch_size: int, seed: int, process_index: int, process_count: int
) -> grain.IterDataset:
    """Endless batches of `pixel_batch`, shuffled anew every epoch."""
    check_shape(batch_size, 1)
    train, _ = images.split("train")
    numbers = grain.MapDataset.range(len(train)).seed(seed).shuffle().repeat(_EPOCHS)
    numbers = numbers[slice(process_index, None, process_count)]
    batches = numbers.map(lambda number: train[number]).batch(batch_size)
    return batches.map(pixel_batch).to_iter_dataset(_READ_OPTIONS)


def evaluation_pixels(images: ImageSet, split: str, *, batch_size: int) -> Iterator[Batch]:
    """Each image of a split once; the last batch is filled up with rows of weight 0."""
    check_shape(batch_size, 1)
    arrays, _ = images.split(split)
    for first in range(0, len(arrays), batch_size):
        rows = arrays[first : first + batch_size]
        missing = batch_size - len(rows)
        batch = pixel_batch(np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)]))
        batch["weights"][len(rows) :] = 0
        yield batch
