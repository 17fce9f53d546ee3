"""WikiText-103 (Merity et al., 2016, arXiv:1609.07843): 103M words of Wikipedia articles.

Read from `wikitext-103-v1.zip`, or from a folder with wiki.train.tokens, wiki.valid.tokens and
wiki.test.tokens. Articles are the documents. The benchmark's measure is perplexity per word, where
each newline counts as the word `<eos>`: 103,227,021 / 217,646 / 245,569 words. Those numbers
(`Corpus.num_words`) are what the total loss is divided by, whatever the tokenizer.
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
# " = Title = ", not " = = Section = = ", and alone between blank lines as headings are.
_HEADING = re.compile(r"(?:\A|(?<=\A \n)|(?<=\n \n)) = (?!= )[^\n]*(?<! =) = \n(?= \n)")


def load(config: Any) -> Corpus:
    """Returns the corpus; reading and counting the full one takes about a minute.

    Args:
      config: `path` is the archive, or a folder that has it or the three files; `tokenizer` is
        "words" for the benchmark's own vocabulary (that of the train split, most frequent word
        first), or anything that `load_tokenizer` takes.

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
    """Cuts a file before each title; joined again, the articles are the file.

    What stands before the first title belongs to the first article.
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
