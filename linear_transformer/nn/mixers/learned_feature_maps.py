"""Linear attention whose feature map has parameters in each head."""

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import BlockDiagonal
from linear_transformer.nn.mixers.kernel_attention import KernelAttention, KernelOptions
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops import checks
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.feature_maps import FEATURE_MAPS, feature_width
from linear_transformer.types import PRNGKey


class LearnedFeatureMap(KernelAttention):
    """Linear attention with the feature map phi(x) = f(layer(x)) in each head.

    Queries and keys have a layer each.  The function f has no parameters, so the chunk form applies
    f to a block at a time and never stores the features.

    A subclass defines `feature_map` and `_layer`.

    Attributes:
      feature_map: f, a name in `ops.feature_maps.FEATURE_MAPS`.
      epsilon: what is added to the sum of the weights.
      form, chunk_size: see `ops.additive.linear_attention`.
    """

    feature_map: ClassVar[str]

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        super().__init__(width, heads, rngs=rngs, **options)
        self.epsilon = epsilon
        self.query_map = self._layer(rngs)
        self.key_map = self._layer(rngs)

    @property
    def _layer_width(self) -> int:
        """Features of the layer in each head."""
        return self.key_width

    @property
    def _state_shape(self):
        features = feature_width(FEATURE_MAPS[self.feature_map], self._layer_width)
        return features, self.value_width + 1

    def _attend(self, x, q, k, v, sums, segment_ids, positions):
        del x, positions
        return linear_attention(
            self.query_map(q),
            self.key_map(k),
            v,
            direction=self.direction,
            feature_map=FEATURE_MAPS[self.feature_map],
            epsilon=self.epsilon,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )

    def _layer(self, rngs: nnx.Rngs) -> BlockDiagonal | HeadNorm:
        """Makes the layer of queries or of keys, from (B, T, H, K) to (B, T, H, layer width)."""
        raise NotImplementedError


@mechanism(
    "rebased",
    meaning="ReBased: linear attention with squares of normed queries and keys, on few features",
    source="Aksenov et al. 2024, arXiv:2402.10644, section 4",
    defaults={"key_width": 16, "bias": False},
    options={"key_width": 16},
    bidirectional={},
)
class ReBased(LearnedFeatureMap):
    """Linear attention with the weights (q^T k)^2 of normed queries and keys.

    phi(x) = vec(z z^T) with z = gamma * norm(x) + beta, a layer norm within the head.  The weight
    can be 0, which those of Based cannot.  Each head has its own gamma and beta, for queries and
    for keys.  The released layer norms the features of all heads together instead, which devices
    that share the heads would have to communicate for.
    """

    feature_map = "quadratic"

    def _layer(self, rngs):
        del rngs  # the norm starts at gamma = 1 and beta = 0
        return HeadNorm(self.heads, self.key_width, center=True, dtype=self._state_dtype)


@mechanism(
    "hedgehog",
    meaning="Hedgehog: linear attention with the softmax of learned features and their negatives",
    source="Zhang et al. 2024, arXiv:2402.04347, section 4",
    bidirectional={},
)
class Hedgehog(LearnedFeatureMap):
    """Linear attention with phi(x) = softmax([W x, -W x]), over the 2 K features of a head.

    Queries and keys of each head have a matrix W each, which starts as the identity, as released.
    """

    feature_map = "signed_softmax"

    def _layer(self, rngs):
        return BlockDiagonal(
            self.heads,
            self.key_width,
            use_bias=False,
            kernel_init=_identities,
            dtype=self.dtype,
            rngs=rngs,
        )


def _identities(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "H K K"]:
    """Initial kernel of a layer that returns its input."""
    del key
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


@mechanism(
    "t2r",
    meaning="T2R: linear attention with ReLU features of a learned layer in each head",
    source="Kasai et al. 2021, arXiv:2103.13076",
    options={"features": None},
    bidirectional={},
)
class T2R(LearnedFeatureMap):
    """Linear attention with phi(x) = relu(W x + b) in each head.

    Queries and keys of each head have a W and a b each.

    Attributes:
      features: features of each head; None is the key width.
    """

    feature_map = "relu"

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        features: int | None = None,
        epsilon: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Unpack[KernelOptions],
    ):
        checks.counts(features=features)
        self.features = features
        super().__init__(width, heads, epsilon=epsilon, rngs=rngs, **options)

    @property
    def _layer_width(self):
        return self.key_width if self.features is None else self.features

    def _layer(self, rngs):
        return BlockDiagonal(
            self.heads, self.key_width, self._layer_width, dtype=self.dtype, rngs=rngs
        )
