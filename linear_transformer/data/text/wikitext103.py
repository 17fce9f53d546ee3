"""WikiText-103 (Merity et al., 2016, arXiv:1609.07843): 103M words of Wikipedia articles.

The source is `wikitext-103-v1.zip`, or a folder with wiki.train.tokens, wiki.valid.tokens and
wiki.test.tokens. Each article is a document. The benchmark's measure is perplexity per word, where
each newline counts as the word `<eos>`: 103,227,021 / 217,646 / 245,569 words. The total loss is
divided by these numbers (`Corpus.num_words`) for any tokenizer.
"""

import collections
import itertools
import re
from typing import Any

from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import (
    decode_utf8,
    existing_path,
    read_file,
    read_zip_member,
    require_distinct,
)
from linear_transformer.data.text.corpus import SPLITS, Corpus, tokenize_splits
from linear_transformer.data.text.tokenizers import Tokenizer, WordTokenizer, load_tokenizer

NAME = "wikitext103"
LICENCE = "CC BY-SA 3.0"
ARCHIVE = "wikitext-103-v1.zip"

_FILES = {
    "train": "wiki.train.tokens",
    "validation": "wiki.valid.tokens",
    "test": "wiki.test.tokens",
}
# A title " = Title = " between blank lines, and not a section " = = Section = = ".
_HEADING = re.compile(r"(?:\A|(?<=\A \n)|(?<=\n \n)) = (?!= )[^\n]*(?<! =) = \n(?= \n)")


def load(config: Any) -> Corpus:
    """Loads the corpus; reading and counting the full data set takes about a minute.

    Args:
      config: `path` is the archive, or a folder with the archive or the three files; `tokenizer`
        is "words" for the benchmark's own vocabulary (the words of the train split, most frequent
        word first), or any argument of `load_tokenizer`.

    Raises:
      DataError: a file is missing, damaged or not UTF-8.
    """
    folder = epath.Path(config.path).expanduser()
    require_distinct({split: [folder / name] for split, name in _FILES.items()})
    documents = {
        split: split_articles(decode_utf8(_read(config.path, name), name))
        for split, name in _FILES.items()
    }
    num_words = {
        split: sum(len(WordTokenizer.split(text)) for text in documents[split]) for split in SPLITS
    }
    tokenizer: Tokenizer
    if config.tokenizer == "words":
        counts: collections.Counter[str] = collections.Counter()
        for text in documents["train"]:
            counts.update(WordTokenizer.split(text))
        tokenizer = WordTokenizer([word for word, _ in counts.most_common()])
    else:
        tokenizer = load_tokenizer(config.tokenizer)
    texts = {split: [text.encode() for text in documents[split]] for split in SPLITS}
    return tokenize_splits(NAME, LICENCE, tokenizer, texts, num_words)


def split_articles(text: str) -> list[str]:
    """Cuts a file before each title; the concatenation of the articles is the file.

    Text before the first title belongs to the first article.
    """
    starts = [match.start() for match in _HEADING.finditer(text)]
    borders = [0, *starts[1:], len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def _read(path: str, name: str) -> bytes:
    given = existing_path(path, NAME, f"{ARCHIVE}, or a folder with it or with {name}")
    if given.is_file():
        return read_zip_member(given, name)
    if (given / name).is_file():
        return read_file(given / name)
    if (given / ARCHIVE).is_file():
        return read_zip_member(given / ARCHIVE, name)
    raise DataError(f"{path}: config.data.path has neither {name} nor {ARCHIVE}")
