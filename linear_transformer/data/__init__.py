"""Data sets, tokenizers, and batches for training and evaluation; this module exports text only."""

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.data.evaluation import evaluation_batches, stateful_batches
from linear_transformer.data.pipeline import training_dataset
from linear_transformer.data.registry import load_corpus
from linear_transformer.data.text.corpus import Corpus
from linear_transformer.data.text.tokenizers import StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "Corpus",
    "DataError",
    "FetchError",
    "StreamDecoder",
    "Tokenizer",
    "evaluation_batches",
    "load_corpus",
    "load_tokenizer",
    "stateful_batches",
    "training_dataset",
]
