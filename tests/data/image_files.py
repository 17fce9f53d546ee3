"""Image files that tests write, and the configs that read them."""

import struct

import ml_collections

from linear_transformer.data.images.image_batches import Augmentation

AS_THEY_ARE = Augmentation(flip=False, padding=0)


def config_of(dataset, path, **more):
    return ml_collections.ConfigDict({"dataset": dataset, "path": str(path), **more})


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()
