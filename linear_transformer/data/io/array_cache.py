"""Cache of arrays that take long to compute."""

import io
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fetch
from linear_transformer.data.io.reading import parse_npy, unzip


def cached_arrays(filename: str, make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Reads arrays from the cache; calls `make` if the file is missing or damaged.

    Args:
      filename: name in the cache, with a version number that must increase when `make` changes.
      make: computes the arrays.

    Raises:
      DataError: the cache can't be written.
    """
    path = fetch.cache_dir() / filename
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            return [parse_npy(unzip(archive, m, filename), m.filename) for m in members]
    except (OSError, zipfile.BadZipFile, DataError):
        pass
    made = list(make())
    data = io.BytesIO()
    np.savez_compressed(data, *made)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="make-") as folder:
            partial = pathlib.Path(folder) / filename
            partial.write_bytes(data.getvalue())
            os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    return made
