"""Text of the user: a file, or a folder of files, in UTF-8.

- Folder with train.txt, validation.txt (or valid.txt) and test.txt: each file is a split.
- Any other folder: every regular file in it and in its subfolders is a document, in the order of
  the paths, and each document belongs to one split. Names that begin with a dot are left out, and
  so are run folders. Files with the same content, or reached by several links, are one document.
- File, or folder of one or two files: each is cut into 90 % train, 5 % validation and 5 % test.
"""

import itertools
from typing import Any

from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import (
    data_files,
    decode_utf8,
    distinct,
    distinct_contents,
    existing_path,
    read_file,
    require_distinct,
)
from linear_transformer.data.text.corpus import SPLITS, Corpus, split_documents, tokenize_splits
from linear_transformer.data.text.tokenizers import load_tokenizer

NAME = "local_text"
LICENCE = "the user's own"

_SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("validation.txt", "valid.txt"),
    "test": ("test.txt",),
}


def load(config: Any) -> Corpus:
    """Loads the corpus in `config.path`, tokenised with `config.tokenizer`.

    Raises:
      DataError: the path does not exist, a file is empty or not UTF-8, or the text is too short.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    path = existing_path(config.path, NAME, "a text file or a folder of text files")
    if path.is_dir() and (path / "train.txt").is_file():
        found = {split: _split_file(path, split) for split in SPLITS}
        require_distinct({split: [file] for split, file in found.items()})
        texts = {split: [_read(file)] for split, file in found.items()}
    else:
        files = [path] if path.is_file() else data_files(path)
        if not files:
            raise DataError(f"{path}: config.data.path has no files")
        documents = distinct_contents(map(_read, files))
        if len(documents) >= len(SPLITS):
            texts = split_documents(documents)
        else:
            parts = [_cut(document) for document in documents]
            texts = {split: [part[split] for part in parts] for split in SPLITS}
    return tokenize_splits(NAME, LICENCE, tokenizer, texts)


def _read(path: epath.Path) -> bytes:
    data = read_file(path)
    decode_utf8(data, str(path))
    return data


def _split_file(folder: epath.Path, split: str) -> epath.Path:
    names = _SPLIT_FILES[split]
    found = distinct(folder / name for name in names if (folder / name).is_file())
    if not found:
        raise DataError(f"{folder}: has train.txt but no {' or '.join(names)}")
    if len(found) > 1:
        raise DataError(f"{folder}: has {' and '.join(names)}; one of them must be taken out")
    return found[0]


def _cut(document: bytes) -> dict[str, bytes]:
    borders = [0]
    for percent in (90, 95):
        border = len(document) * percent // 100
        # Back over the continuation bytes of UTF-8, so that no character is cut.
        while border and document[border] & 0xC0 == 0x80:
            border -= 1
        borders.append(border)
    borders.append(len(document))
    parts = [document[a:b] for a, b in itertools.pairwise(borders)]
    return dict(zip(SPLITS, parts, strict=True))
