"""Text corpus: tokenised documents in three splits, with counts that normalise a loss."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from linear_transformer.data.errors import DataError, split_of
from linear_transformer.data.text.tokenizers import Tokenizer

SPLITS = ("train", "validation", "test")
_PERIOD = 20

Document = TypeVar("Document")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents of token ids, with the counts that losses are divided by.

    Attributes:
      name: name of the data set in `config.data.dataset`.
      licence: licence of the text.
      tokenizer: tokenizer that encodes and decodes the ids.
      splits: documents of "train", "validation" and "test"; each is an array of ids of shape (T,),
        without BOS, in the smallest unsigned dtype.
      num_bytes: UTF-8 bytes of each split, for bits per byte with any tokenizer.
      num_words: words of each split if the benchmark uses perplexity per word, else None.
    """

    name: str
    licence: str
    tokenizer: Tokenizer
    splits: Mapping[str, list[np.ndarray]]
    num_bytes: Mapping[str, int]
    num_words: Mapping[str, int] | None = None

    def documents(self, split: str) -> list[np.ndarray]:
        """Returns the documents of a split; raises a DataError for an unknown name."""
        return split_of(self.splits, split, self.name)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all documents; equal corpora have equal fingerprints."""
        digest = hashlib.sha256()
        for split, documents in self.splits.items():
            for document in documents:
                digest.update(f"{split} {document.size} {document.dtype.str} ".encode())
                digest.update(np.ascontiguousarray(document).data)
        return digest.hexdigest()


def tokenize_splits(
    name: str,
    licence: str,
    tokenizer: Tokenizer,
    texts: Mapping[str, Sequence[bytes]],
    num_words: Mapping[str, int] | None = None,
) -> Corpus:
    """Makes a corpus from the UTF-8 documents of each split; see `Corpus` for other arguments.

    Raises:
      DataError: a split has no text.
    """
    for split in SPLITS:
        if not any(texts[split]):
            raise DataError(f"{name}: the text is too short, its {split} split is empty")
    return Corpus(
        name=name,
        licence=licence,
        tokenizer=tokenizer,
        splits={split: [tokenizer.encode_utf8(text) for text in texts[split]] for split in SPLITS},
        num_bytes={split: sum(map(len, texts[split])) for split in SPLITS},
        num_words=num_words,
    )


def split_documents(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Assigns whole documents to splits: of every 20, the 1st is test and the 11th validation.

    With 3 to 19 documents, the first is test and the middle one validation.
    """
    period = min(_PERIOD, len(documents))
    roles = {0: "test", period // 2: "validation"}
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for index, document in enumerate(documents):
        splits[roles.get(index % period, "train")].append(document)
    return splits
