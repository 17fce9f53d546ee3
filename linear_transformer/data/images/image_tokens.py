"""Images as sequences of grey levels, row by row, for the image task of Long Range Arena."""

from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from linear_transformer.data.images import datasets as images

GREY_LEVELS = 256  # vocabulary without a padding id, because every sequence is a whole image
SIDE = 32  # pixels; smaller images get a black border

_LUMA = np.array([0.2989, 0.5870, 0.1140])  # weights of red, green and blue (ITU-R BT.601)


class GreyImages:
    """Data set of `data.images.datasets` with one token for each of 32 x 32 pixels."""

    vocab_size = GREY_LEVELS
    sequences_per_example = 1
    num_threads = 0  # the images are in memory

    def __init__(self, source: images.ImageSet):
        self.source = source
        self.name = source.name
        self.licence = source.licence
        self.num_classes = source.num_classes

    def split(self, name: str) -> tuple[UInt8[np.ndarray, "N Y X C"], Int[np.ndarray, " N"]]:
        """Returns images and labels of a split; raises a DataError for an unknown name."""
        return self.source.split(name)

    def read(self, image: UInt8[np.ndarray, "Y X C"]) -> tuple[UInt8[np.ndarray, " T"]]:
        rows, columns = image.shape[:2]
        top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
        border = ((top, SIDE - rows - top), (left, SIDE - columns - left))
        return (np.pad(to_grey(image), border).reshape(-1),)


def to_grey(image: UInt8[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "Y X"]:
    """Returns the only channel of an image, or the luma of red, green and blue."""
    if image.shape[-1] == 1:
        return image[..., 0]
    return np.rint(image @ _LUMA).astype(np.uint8)


def load(config: Any) -> GreyImages:
    """Loads the data set `config.dataset`; see `data.images.datasets.load_images`."""
    return GreyImages(images.load_images(config))
