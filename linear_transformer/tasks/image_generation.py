"""Generation of images pixel by pixel: bits per dimension under a mixture of logistics."""

import math
from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from linear_transformer.data.images.image_batches import (
    Augmentation,
    evaluation_images,
    load_source,
    training_images,
)
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import Batch, Sequences
from linear_transformer.errors import ConfigError
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.ops import logistic_mixture
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.token_task import TokenTask
from linear_transformer.types import Metrics, PRNGKey


def _pixel_by_pixel(batch: Batch) -> Batch:
    """Makes inputs and targets: each value but the first is predicted from all values before it."""
    pixels = batch["images"].reshape(len(batch["images"]), -1).astype(np.int32)
    inputs, targets = pixels[:, :-1], pixels[:, 1:]
    weights = np.broadcast_to(batch["weights"][:, None], targets.shape)
    return {"inputs": inputs, "targets": targets, "weights": weights}


class ImageGeneration(TokenTask):
    """The task of every config with `task = "image_generation"`.

    An image is the sequence of its channel values, row by row.  As in Katharopoulos et al. 2020,
    the model predicts each value from all values before it; the first value is not predicted.
    """

    headline = "bits_per_dim"
    sequences = Sequences(("inputs", "targets", "weights"))

    def __init__(self, config: ml_collections.ConfigDict):
        self.source = load_source(config.data)
        super().__init__(config, logistic_mixture.LEVELS)
        outputs = self.model_config.num_outputs
        if outputs < 3 or outputs % 3:
            raise ConfigError(
                f"config.model.num_outputs is {outputs}; a mixture of logistics needs 3 for each "
                "component"
            )
        length = math.prod(self.source.shape) - 1
        if config.data.sequence_length != length:
            raise ConfigError(
                f"config.data.sequence_length is {config.data.sequence_length}; an image of "
                f"{self.source.name} has {length} predicted pixels"
            )

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_images(
            self.source,
            Augmentation(flip=False, padding=0),
            seed=self.seed,
            **share_of(self.data.batch_size, process_index, process_count),
        ).map(_pixel_by_pixel)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        reader = evaluation.reader(self.data.batch_size)
        images = evaluation_images(self.source, split, **reader)
        return map(_pixel_by_pixel, images)

    def loss(
        self, model: LanguageModel, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        parameters_BTP, _ = model(batch["inputs"], dropout_key=dropout_key)
        nll_BT = logistic_mixture.negative_log_likelihood(parameters_BTP, batch["targets"])
        return {"loss": (jnp.sum(nll_BT * batch["weights"]), jnp.sum(batch["weights"]))}

    def summarize(self, sums: dict[str, tuple[float, float]], split: str) -> dict[str, float]:
        means = super().summarize(sums, split)
        return means | {"bits_per_dim": means["loss"] / math.log(2)}

    def describe(self, model: LanguageModel) -> dict[str, str]:
        _, labels = self.source.split("train")
        data = f"{self.source.name}, {len(labels):,} images to train on ({self.source.licence})"
        return {"data": data} | super().describe(model)
