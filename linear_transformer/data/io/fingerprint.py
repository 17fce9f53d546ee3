"""Fingerprints of data: a run that is resumed or evaluated must have the data it began with."""

import hashlib
from typing import Any

import numpy as np
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import files_below
from linear_transformer.data.text.corpus import Corpus
from linear_transformer.runtime import environment

# For larger sets of files only names and sizes are hashed: ImageNet has 150 GB.
_MOST_BYTES = 2**32


def fingerprints(config: Any, task: Any) -> dict[str, str]:
    """SHA-256 of the data that a run reads, by the config key that names them.

    - `data.path` and `data.tokenizer`: the files. Contents, names and sizes; where the files have
      more than 4 GiB together, names and sizes.
    - `data.dataset`, where there is no path: all documents of a corpus of text. Other sets are
      generated, or fetched and checked against a SHA-256 in the code; of those the integers of the
      first batch for training, which another generator or another order would change.

    Args:
      config: the `data` part of an experiment's config.
      task: made from the config.

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
    """SHA-256 of a file, or of the files of a folder.

    Names that begin with a dot are left out, and the folders of runs, which may lie beside data.
    """
    files = {"": path}
    if path.is_dir():
        names = {file.relative_to(path): file for file in files_below(path, hidden=False)}
        runs = {name.parent for name in names if name.name == environment.FILE}
        files = {
            name.as_posix(): file for name, file in names.items() if runs.isdisjoint(name.parents)
        }
    digest = hashlib.sha256()
    try:
        sizes = {name: file.stat().length for name, file in files.items()}
        whole = sum(sizes.values()) <= _MOST_BYTES
        for name in sorted(files):
            digest.update(f"{name}\0{sizes[name]}\0".encode(errors="surrogateescape"))
            if whole:
                with files[name].open("rb") as file:
                    while piece := file.read(1 << 24):
                        digest.update(piece)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}: {error.filename})") from error
    return digest.hexdigest()


def _first_batch(task: Any) -> str:
    """SHA-256 of the integers of the first batch; computed floats differ between machines."""
    batch = next(iter(task.training_data(0, 1)))
    digest = hashlib.sha256()
    for name, array in sorted(batch.items()):
        array = np.ascontiguousarray(array)
        if array.dtype.kind in "biu":
            digest.update(f"{name} {array.shape} {array.dtype.str} ".encode())
            digest.update(array.data)
    return digest.hexdigest()
