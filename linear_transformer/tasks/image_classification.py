"""Classification of images: cross entropy and accuracy."""

from collections.abc import Iterator

import grain
import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.data.images.image_batches import (
    Augmentation,
    evaluation_images,
    load_source,
    training_images,
)
from linear_transformer.data.share import share_of
from linear_transformer.data.stream import Batch
from linear_transformer.models.resnet import ResNet, ResNetConfig
from linear_transformer.tasks import evaluation
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.classification import classification_loss
from linear_transformer.types import Metrics, PRNGKey


class ImageClassification(Task):
    """The task of every config with `task = "image_classification"`.

    `config.data` has the keys of `data.images.image_batches.Augmentation`.
    """

    headline = "accuracy"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.augmentation = Augmentation(flip=config.data.flip, padding=config.data.padding)
        self.source = load_source(config.data)
        classes, channels = self.source.num_classes, self.source.shape[-1]
        self.model_config = configuration.build(
            ResNetConfig, config.model, "model", num_classes=classes, image_channels=channels
        )

    def make_model(self, rngs: nnx.Rngs) -> ResNet:
        return ResNet(self.model_config, rngs=rngs)

    def flops_per_example(self, model: ResNet) -> int:
        return model.flops_per_image(self.source.shape[:2])

    def training_data(self, process_index: int, process_count: int) -> grain.IterDataset:
        return training_images(
            self.source,
            self.augmentation,
            seed=self.seed,
            **share_of(self.data.batch_size, process_index, process_count),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        return evaluation_images(self.source, split, **evaluation.reader(self.data.batch_size))

    def loss(
        self, model: ResNet, batch: dict[str, jax.Array], dropout_key: PRNGKey | None
    ) -> Metrics:
        del dropout_key
        # Maps bytes to -2 ... 2: about zero mean and unit variance.
        images_BYXC = batch["images"].astype(jnp.float32) / 63.75 - 2
        return classification_loss(model(images_BYXC), batch["labels"], batch["weights"])

    def describe(self, model: ResNet) -> dict[str, str]:
        _, labels = self.source.split("train")
        shape = " x ".join(map(str, self.source.shape))
        return {
            "data": f"{self.source.name}, {len(labels):,} images to train on "
            f"({self.source.licence})",
            "images": f"{shape}, {self.source.num_classes} classes",
            "parameters": f"{model.num_parameters:,}",
        }
