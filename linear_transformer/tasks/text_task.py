"""Base class of tasks on the documents of a corpus."""

from collections.abc import Iterator

import grain
import ml_collections

from linear_transformer.data import evaluation_batches, load_corpus, training_dataset
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import TOKENS, Batch
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.token_task import TokenTask


class TextTask(TokenTask):
    """Task with a `LanguageModel` on text.

    Args:
      config: config of the experiment.
      special_tokens: number of tokens that the task adds to the vocabulary of the text.
    """

    sequences = TOKENS

    def __init__(self, config: ml_collections.ConfigDict, special_tokens: int = 0):
        self.corpus = load_corpus(config.data)
        super().__init__(config, self.corpus.tokenizer.vocab_size + special_tokens)

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_dataset(
            self.corpus,
            sequence_length=self.data.sequence_length,
            seed=self.seed,
            packing=self.data.packing,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def windows(self, split: str, length: int) -> Iterator[Batch]:
        """Yields batches of windows of at most `length` tokens of one document."""
        return evaluation_batches(
            self.corpus.documents(split),
            self.corpus.tokenizer,
            sequence_length=length,
            **evaluation.reader(self.rows_at(length)),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        return self.windows(split, self.data.sequence_length)

    def describe(self, model: LanguageModel) -> dict[str, str]:
        train_bytes = self.corpus.num_bytes["train"]
        data = f"{self.corpus.name}, {train_bytes:,} bytes to train on ({self.corpus.licence})"
        return {"data": data} | super().describe(model)
