"""Batches of labelled images, for training (with Grain) and evaluation."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Unpack, runtime_checkable

import grain
import numpy as np
from jaxtyping import UInt8

from linear_transformer.data.errors import DataError, lookup
from linear_transformer.data.images import datasets as images, image_folder
from linear_transformer.data.labelled.labelled_batches import (
    LabelledSource,
    evaluation_batches,
    training_batches,
)
from linear_transformer.data.share import Share
from linear_transformer.data.stream import Batch

Image = UInt8[np.ndarray, "Y X C"]


@runtime_checkable
class ImageSource(LabelledSource, Protocol):
    """Labelled images by split, in memory or in files.

    Attributes:
      name, licence: name and licence of the data set.
      shape: rows Y, columns X and channels C of every image.
      num_classes: number of labels, from 0.
    """

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int: ...

    def read(self, item: Any, /, rng: np.random.Generator | None = None) -> Image:
        """Returns the image, or with `rng` a random view of the image for training."""
        ...


_LOADERS: dict[str, Callable[[Any], ImageSource]] = {
    **dict.fromkeys(images.DATASETS, images.load_images),
    image_folder.NAME: image_folder.load,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of an image that keep its class.

    Attributes:
      flip: whether to mirror half of the images, left to right.
      padding: width of the black border added before a random crop to the image size (He et al.
        2016, arXiv:1512.03385, section 4.2: 4 for CIFAR-10).
    """

    flip: bool
    padding: int

    def __post_init__(self):
        if self.padding < 0:
            raise DataError(f"config.data.padding = {self.padding}: must be 0 or more")

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        if self.padding:
            border = (self.padding, self.padding)
            rows, columns = image.shape[:2]
            y, x = rng.integers(2 * self.padding, size=2, endpoint=True)
            image = np.pad(image, (border, border, (0, 0)))[y : y + rows, x : x + columns]
        if self.flip and rng.integers(2):
            image = image[:, ::-1]
        return image


def load_source(config: Any) -> ImageSource:
    """Loads the data set that `config.dataset` names.

    Raises:
      DataError: the name is unknown, or files are missing or broken.
    """
    return lookup(_LOADERS, config.dataset, "config.data.dataset")(config)


def training_images(
    source: ImageSource,
    augmentation: Augmentation,
    *,
    seed: int,
    **share: Unpack[Share],
) -> grain.IterDataset:
    """Makes the endless dataset of augmented images, shuffled anew every epoch.

    For any number of processes, the processes together see the same views of the same images.

    Args:
      source: source of the images; its train split is read.
      augmentation: random changes of each training view of the source.
      seed: seed of order and augmentation, 0 to 2^32 - 1.
      **share: images of this process, see `data.share.Share`.

    Returns:
      A dataset whose iterator has `get_state` and `set_state` and yields `images` (B, Y, X, C)
      uint8, `labels` (B,) int32, and `weights` (B,) float32, all 1.

    Raises:
      DataError: a value is out of range; on reading, a file is broken.
    """

    def read(item: Any, rng: np.random.Generator) -> Batch:
        return {"images": augmentation(source.read(item, rng), rng)}

    return training_batches(source, read, seed=seed, **share)


def evaluation_images(source: ImageSource, split: str, **share: Unpack[Share]) -> Iterator[Batch]:
    """Yields every image of a split once; images of weight 0 fill up the last batch.

    Args:
      source: source of the images.
      split: "train", "validation" or "test".
      **share: rows of this process, see `data.share.Share`.

    Raises:
      DataError: the split is unknown, a value is out of range, or a file is broken.
    """

    def read(item: Any) -> Batch:
        return {"images": source.read(item)}

    return evaluation_batches(source, split, read, **share)
