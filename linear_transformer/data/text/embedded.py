"""Default corpus, which needs no network: documentation and sources of CPython 3.11.

Its 181 documents are the topics of Python's own help (`pydoc_data.topics`) and the sources of 104
pure-Python modules of the standard library, 3.9 MB. The package contains the documents in one
compressed file, so that the text is the same under every version of Python.
"""

import lzma
import pathlib
from typing import Any

from linear_transformer.data.errors import DataError
from linear_transformer.data.text.corpus import Corpus, split_documents, tokenize_splits
from linear_transformer.data.text.tokenizers import load_tokenizer

NAME = "embedded"
LICENCE = "PSF-2.0"

_FILE = pathlib.Path(__file__).with_name("embedded_text.xz")  # documents separated by NUL


def load(config: Any) -> Corpus:
    """Loads the corpus; uses only `config.tokenizer`.

    Raises:
      DataError: the tokenizer cannot be loaded, or this package was installed without the text.
    """
    try:
        documents = lzma.decompress(_FILE.read_bytes()).split(b"\0")
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"{_FILE}: cannot be read ({error}); install the package again") from error
    return tokenize_splits(
        NAME, LICENCE, load_tokenizer(config.tokenizer), split_documents(documents)
    )
