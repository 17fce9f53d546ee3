"""Fingerprints of data: a resumed or evaluated run must have the data that it began with."""

import hashlib
from typing import Any

import numpy as np
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import data_files, pieces
from linear_transformer.data.text.corpus import Corpus

# For more bytes only names and sizes are hashed: ImageNet has 150 GB.
_MOST_BYTES = 2**32


def fingerprints(config: Any, task: Any) -> dict[str, str]:
    """Computes a SHA-256 of the data that a run reads, for each config key that names data.

    - `data.path` and `data.tokenizer`: names, sizes and contents of the files; only names and sizes
      if the files have more than 4 GiB together.
    - `data.dataset`, without a path: for a text corpus, all its documents. Other data sets are
      generated, or fetched and checked against a SHA-256 in the code. For them, the integers of the
      first training batch are hashed; a change of generator or order changes these integers.

    Args:
      config: the `data` part of an experiment's config.
      task: task made from the config.

    Raises:
      DataError: a file cannot be read.
    """
    found = {}
    for key in ("path", "tokenizer"):
        name = config.get(key, "")
        if name and name != "bytes" and epath.Path(name).expanduser().exists():
            found[f"config.data.{key}"] = of_files(epath.Path(name).expanduser())
    if "config.data.path" not in found:
        corpus = getattr(task, "corpus", None)
        known = isinstance(corpus, Corpus)
        found["config.data.dataset"] = corpus.fingerprint() if known else _first_batch(task)
    return found


def of_files(path: epath.Path) -> str:
    """Computes the SHA-256 of a file, or of the files of a folder, by `data_files`."""
    files = {"": path}
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in data_files(path)}
    digest = hashlib.sha256()
    try:
        sizes = {name: file.stat().length for name, file in files.items()}
        whole = sum(sizes.values()) <= _MOST_BYTES
        for name in sorted(files):
            digest.update(f"{name}\0{sizes[name]}\0".encode(errors="surrogateescape"))
            if whole:
                for piece in pieces(files[name]):
                    digest.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}: {error.filename})") from error
    return digest.hexdigest()


def _first_batch(task: Any) -> str:
    """Computes the SHA-256 of the first batch's integers; floats may differ between machines."""
    batch = next(iter(task.training_data(0, 1)))
    digest = hashlib.sha256()
    for name, array in sorted(batch.items()):
        array = np.ascontiguousarray(array)
        if array.dtype.kind in "biu":
            digest.update(f"{name} {array.shape} {array.dtype.str} ".encode())
            digest.update(array.data)
    return digest.hexdigest()
