"""enwik8 and text8: the first 100 MB of English Wikipedia of 3 March 2006, as is and cleaned.

The splits have 90M / 5M / 5M bytes, one document each, as in Mahoney's benchmark and later papers.
The test split is the last 5M, the validation split the 5M before. Both files are checked against
their SHA-256, from the official zip archive or unpacked in a folder.
Source: http://mattmahoney.net/dc/textdata.html
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fetch
from linear_transformer.data.io.reading import existing_path, read_file, read_zip_member
from linear_transformer.data.text.corpus import SPLITS, Corpus, tokenize_splits
from linear_transformer.data.text.tokenizers import load_tokenizer

LICENCE = "GFDL / CC BY-SA 3.0 (Wikipedia)"
SIZES = (90_000_000, 5_000_000, 5_000_000)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Description of one of the two files.

    Attributes:
      name: name of the file, which is a member of the archive `name.zip`.
      sha256: SHA-256 of the unpacked file.
      zip_sha256: SHA-256 of the archive.
      sizes: bytes of the train, validation and test split, in file order.
    """

    name: str
    sha256: str
    zip_sha256: str
    sizes: tuple[int, int, int] = SIZES


ENWIK8 = Benchmark(
    name="enwik8",
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    zip_sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
)
TEXT8 = Benchmark(
    name="text8",
    sha256="6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
    zip_sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
)


def load(config: Any, benchmark: Benchmark = ENWIK8) -> Corpus:
    """Loads the corpus.

    With a subword tokenizer, a character that is cut by the border of two splits becomes U+FFFD.

    Args:
      config: `path` is a folder with the file or its zip archive, or the file or archive itself,
        or empty to download the archive; `tokenizer` is the name of the tokenizer.
      benchmark: description of the file.

    Raises:
      FetchError: `config.path` is empty, and the archive is not cached and cannot be downloaded.
      DataError: the file is missing or has other contents.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    path = _find(config.path, benchmark)
    size, zipped = sum(benchmark.sizes), path.suffix == ".zip"
    data = read_zip_member(path, benchmark.name, size) if zipped else read_file(path)
    if len(data) != size:
        raise DataError(
            f"{path}: {benchmark.name} has {size} bytes, this file {len(data)}; download it again"
        )
    actual = hashlib.sha256(data).hexdigest()
    if actual != benchmark.sha256:
        raise DataError(
            f"{path}: expected SHA-256 {benchmark.sha256} of {benchmark.name}, got {actual}; "
            "download it again"
        )
    parts = split_bytes(data, benchmark.sizes)
    texts = {split: [part] for split, part in zip(SPLITS, parts, strict=True)}
    return tokenize_splits(benchmark.name, LICENCE, tokenizer, texts)


def load_text8(config: Any) -> Corpus:
    """Loads text8; see `load`."""
    return load(config, TEXT8)


def split_bytes(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cuts `data` into consecutive parts of the given sizes."""
    parts, start = [], 0
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    return parts


def _find(path: str, benchmark: Benchmark) -> epath.Path:
    archive = f"{benchmark.name}.zip"
    if not path:
        url = f"http://mattmahoney.net/dc/{archive}"
        return epath.Path(fetch.fetch_url(url, archive, benchmark.zip_sha256))
    given = existing_path(path, benchmark.name, f"a folder with {archive} or {benchmark.name}")
    if given.is_file():
        return given
    for name in (benchmark.name, archive):
        if (given / name).is_file():
            return given / name
    raise DataError(
        f"{path}: config.data.path has neither {benchmark.name} nor {archive}; "
        "leave it empty to download"
    )
