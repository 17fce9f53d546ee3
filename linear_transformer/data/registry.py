"""Corpora by name. A new corpus is a module with `load`, and a line in `DATASETS`."""

from collections.abc import Callable
from typing import Any

from linear_transformer.data.errors import lookup, without_path
from linear_transformer.data.text import embedded, enwik8, local_text, shakespeare, wikitext103
from linear_transformer.data.text.corpus import Corpus

DATASETS: dict[str, Callable[[Any], Corpus]] = {
    "embedded": without_path(embedded.load),
    "shakespeare": without_path(shakespeare.load),
    "enwik8": enwik8.load,
    "text8": enwik8.load_text8,
    "wikitext103": wikitext103.load,
    "local_text": local_text.load,
}


def load_corpus(config: Any) -> Corpus:
    """Loads the corpus that a config describes.

    Args:
      config: the `data` part of an experiment's config, with the string fields `dataset`,
        `path` ("" if the data set needs none) and `tokenizer`.

    Raises:
      DataError: the name is unknown or the files have a mistake; the message is one line.
    """
    return lookup(DATASETS, config.dataset, "config.data.dataset")(config)
