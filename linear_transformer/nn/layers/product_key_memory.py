"""Product-key memory in place of a feed-forward (Lample et al. 2019, arXiv:1907.05242)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.nn.layers.batch_norm import BatchNorm
from linear_transformer.nn.layers.linear import Linear
from linear_transformer.nn.parameters import embedding, kernel
from linear_transformer.ops import checks
from linear_transformer.ops.custom_vjp import custom_vjp
from linear_transformer.types import Activations, PRNGKey


class ProductKeyMemory(nnx.Module):
    """Memory of N^2 values, of which each head reads the k with the best keys (section 3).

        q = batch_norm(W_q x), of which each head h has two halves q_h1 and q_h2
        s_hij = q_h1.c_h1i + q_h2.c_h2j               the score of value i N + j
        y = sum_h sum over the k best (i, j) of softmax(s_h)_ij v_{i N + j}

    The k best pairs are among the k best sub-keys i and the k best sub-keys j, so a head computes
    2 N + k^2 scores.  All heads read the same values.

    Differences from the paper: the queries of all heads together are as wide as the model, and the
    values have the learning rate of the other parameters and dense updates.

    Attributes:
      keys: N, the sub-keys of each half; N^2 values.
      top: k, the values that a head reads, at most N.
      heads: number of heads.
    """

    def __init__(
        self,
        width: int,
        *,
        keys: int,
        top: int,
        heads: int,
        output_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        checks.counts(keys=keys, top=top, heads=heads)
        if top > keys:
            raise ValueError(f"top is {top}; it must be at most keys ({keys})")
        if width % (2 * heads):
            raise ValueError(f"heads is {heads}; twice this number must divide the width ({width})")
        half = width // (2 * heads)
        self.keys, self.top, self.heads, self.dtype = keys, top, heads, dtype
        self.query = Linear(
            width, width, axes=("embed", "heads"), use_bias=False, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", -1, -2)
        sub_keys = uniform(rngs.params(), (2, heads, keys, half))
        metadata = kernel(None, "heads", None, None, group="embedding")
        self.sub_keys = nnx.Param(sub_keys, **metadata)
        values = nnx.initializers.normal(output_scale * width**-0.5)(
            rngs.params(), (keys**2, width)
        )
        self.values = nnx.Param(values, **embedding(None, "embed"))

    def __call__(self, x_BTD: Activations, dropout_key: PRNGKey | None = None) -> Activations:
        """Returns the sums of values; with a key, the batch norm is that of training."""
        q_BTD = self.norm(self.query(x_BTD), training=dropout_key is not None)
        q_BTHXK = q_BTD.reshape(*x_BTD.shape[:2], self.heads, 2, -1)
        sub_keys = self.sub_keys[...].astype(self.dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        scores_BTHXN = jnp.einsum(
            "bthxk,xhnk->bthxn", q_BTHXK, sub_keys, preferred_element_type=wide
        )
        best, places = lax.top_k(scores_BTHXN, self.top)
        pairs = best[..., 0, :, None] + best[..., 1, None, :]
        scores_BTHM, pair = lax.top_k(pairs.reshape(*pairs.shape[:3], -1), self.top)
        first, second = (
            jnp.take_along_axis(places[..., half, :], chosen, axis=-1)
            for half, chosen in enumerate(jnp.divmod(pair, self.top))
        )
        weights_BTHM = jax.nn.softmax(scores_BTHM)
        y_BTD = _read(self.values[...], self.keys * first + second, weights_BTHM)
        return y_BTD.astype(self.dtype)

    @property
    def flops_beyond_weights(self) -> int:
        """FLOPs of one token for its sum of values."""
        return 2 * self.heads * self.top * self.values.shape[-1]


@custom_vjp()
def _read(
    values_SD: Float[Array, "S D"],
    places_BTHM: Int[Array, "B T H M"],
    weights_BTHM: Float[Array, "B T H M"],
) -> Float[Array, "B T D"]:
    """Returns the weighted sums of values, without an array of the values that all tokens read."""

    def add(m, y_BTD):
        rows_BTHD = values_SD[places_BTHM[..., m]]
        return y_BTD + jnp.einsum("bth,bthd->btd", weights_BTHM[..., m], rows_BTHD)

    y_BTD = jnp.zeros((*places_BTHM.shape[:2], values_SD.shape[1]), weights_BTHM.dtype)
    return lax.fori_loop(0, places_BTHM.shape[-1], add, y_BTD)


def _read_bwd(residuals: tuple[Array, Array, Array], dy_BTD: Array) -> tuple[Array, None, Array]:
    values_SD, places_BTHM, weights_BTHM = residuals

    def add(m, gradients):
        dvalues, dweights = gradients
        places_BTH = places_BTHM[..., m]
        of_rows = jnp.einsum("bth,btd->bthd", weights_BTHM[..., m], dy_BTD)
        of_weights = jnp.einsum("bthd,btd->bth", values_SD[places_BTH], dy_BTD)
        dvalues = dvalues.at[places_BTH].add(of_rows.astype(dvalues.dtype))
        return dvalues, dweights.at[..., m].set(of_weights)

    zeros = jnp.zeros_like(values_SD), jnp.zeros_like(weights_BTHM)
    dvalues, dweights = lax.fori_loop(0, places_BTHM.shape[-1], add, zeros)
    return dvalues, None, dweights


_read.defvjp(lambda *arguments: (_read(*arguments), arguments), _read_bwd)
