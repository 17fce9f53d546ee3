"""Base class of delta-rule mixers: projections, a short convolution, unit keys and step sizes."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from linear_transformer.nn.layers.head_norm import HeadNorm
from linear_transformer.nn.layers.linear import merge_heads, split_heads
from linear_transformer.nn.layers.short_convolution import ShortConvolution
from linear_transformer.nn.logical_axes import named
from linear_transformer.nn.mixers.recurrent_mixer import KeyedOptions, RecurrentMixer
from linear_transformer.ops import checks
from linear_transformer.ops.delta import FORMS, delta_product
from linear_transformer.ops.recurrence import accumulation_dtype
from linear_transformer.types import Activations, Outputs, Queries, State


class DeltaOptions(KeyedOptions, total=False):
    """Options of every `DeltaMixer`."""

    key_heads: int | None
    value_width: int | None
    convolution: int
    negative_eigenvalues: bool


class DeltaMixer(RecurrentMixer):
    """Delta rule with queries and keys of length one, and sigmoid step sizes b_t per head.

        [q, k, v]_t = silu(convolution([W_Q, W_K, W_V] x)_t)       b_t = sigmoid(W_b x_t)
        S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T     y_t = W_O norm(S_t^T q_t)

    A subclass may add a decay a_t (`_log_decay`) and a gate on the normed output (`_gated`), or
    replace the step sizes by other gates (`_make_gates` and `_attend`).

    Keys, step sizes and decays are fp32 or wider for any dtype of the activations (`ops.delta`
    explains why).  A query or key x becomes x / sqrt(|x|^2 + 1e-6), as in the released code (fla's
    `l2norm`).  The direction of a vector near 0 changes fast, so the gradient of a token with
    features of zeros, such as padding, is large: a factor of 1000 = 1 / sqrt(1e-6) from this
    normalisation, times 300 from the norm of the output.  A larger epsilon would not compute the
    function that published weights were trained with.

    Attributes:
      key_width, value_width: features of queries and keys, and of values, per head; None is width /
        heads.
      key_heads: heads of queries and keys, a divisor of the heads of values; None is all heads.  A
        key head serves heads / key_heads neighbouring heads, which have their own values, step
        sizes, decays, states and outputs, as in Qwen3-Next.
      convolution: tokens in the window of the short convolution.
      negative_eigenvalues: whether step sizes go up to 2, so that the state can change its sign
        along a key, which parity needs (Grazzi et al. 2024, arXiv:2411.12537).
      steps: updates per token, each with a key, a value and a step size (Siems et al. 2025).
      form, chunk_size: see `ops.delta.delta_product`.
    """

    forms = FORMS
    local: ShortConvolution

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_heads: int | None = None,
        value_width: int | None = None,
        convolution: int = 4,
        negative_eigenvalues: bool = False,
        steps: int = 1,
        rngs: nnx.Rngs,
        **options: Unpack[KeyedOptions],
    ):
        key_heads = heads if key_heads is None else key_heads
        checks.counts(steps=steps, key_heads=key_heads)
        if heads % key_heads:
            raise ValueError(f"key_heads is {key_heads}; it must be a divisor of heads ({heads})")
        super().__init__(width, heads, value_width=value_width, bias=False, **options)
        self.output = self._output_layer(rngs, heads * self.value_width)
        self.negative_eigenvalues = negative_eigenvalues
        self.key_heads = key_heads
        self.steps = steps
        keys, values = key_heads * self.key_width, heads * self.value_width
        self.query = self._linear(keys, rngs)
        self.key = self._linear(steps * keys, rngs)
        self.value = self._linear(steps * values, rngs)
        self._make_gates(rngs)
        mixed = keys + steps * (keys + values)
        self.local = ShortConvolution(mixed, convolution, dtype=self.dtype, rngs=rngs)
        self.norm = HeadNorm(heads, self.value_width, dtype=self.dtype)

    def flops_per_token(self, context: int) -> int:
        """FLOPs of one token for S^T k, k u^T and S^T q; see `Mixer.flops_per_token`."""
        del context  # the cost of a token does not depend on its position
        return (4 * self.steps + 2) * self.heads * self.key_width * self.value_width

    def _mix(self, x, sums, past, segment_ids, positions):
        del positions
        mixed = (self.query(x), self.key(x), self.value(x))
        mixed, past = self.local.side_by_side(mixed, past, segment_ids=segment_ids)
        q, k, v = map(jax.nn.silu, mixed)
        q_BTHK = unit_length(split_heads(q, self.key_heads)).astype(q.dtype)
        k_BTNHK = unit_length(self._per_step(k, self.key_heads))
        group = self.heads // self.key_heads
        o_BTHV, sums = self._attend(
            jnp.repeat(q_BTHK, group, axis=2),
            jnp.repeat(k_BTNHK, group, axis=3),
            self._per_step(v, self.heads),
            x,
            initial_state=sums,
            **self._recurrence(segment_ids),
        )
        return self._gated(merge_heads(self.norm(o_BTHV)), x), sums, past

    def _make_gates(self, rngs: nnx.Rngs) -> None:
        """Makes the layers that `_attend` applies to the input."""
        self.step = self._linear(self.steps * self.heads, rngs)

    def _attend(
        self,
        q_BTHK: Queries,
        k_BTNHK: Float[Array, "B T N H K"],
        v_BTNHV: Float[Array, "B T N H V"],
        x_BTD: Activations,
        **options: Any,
    ) -> tuple[Outputs, State]:
        """Computes the recurrence; `options` are its state, segments, form and chunk size."""
        logits_BTNH = self._per_step(self.step(x_BTD), self.heads)[..., 0]
        beta_BTNH = jax.nn.sigmoid(logits_BTNH.astype(self._state_dtype))
        if self.negative_eigenvalues:
            beta_BTNH = 2 * beta_BTNH
        log_decay = self._log_decay(x_BTD)
        return delta_product(q_BTHK, k_BTNHK, v_BTNHV, log_decay, beta_BTNH, **options)

    def _per_step(self, x_BTD: Activations, heads: int) -> Float[Array, "B T N H K"]:
        """Splits features into steps and heads; the steps of a head are on the head's device."""
        width = x_BTD.shape[-1] // (heads * self.steps)
        x_BTHNK = x_BTD.reshape(*x_BTD.shape[:2], heads, self.steps, width)
        return jnp.swapaxes(named(x_BTHNK, "rows", "time", "heads", None, None), 2, 3)

    def _log_decay(self, x_BTD: Activations) -> Array | None:
        """Returns log decays, (B, T, H) or (B, T, H, K), or None for no decay."""
        return None

    def _gated(self, o_BTD: Activations, x_BTD: Activations) -> Activations:
        return o_BTD


def unit_length(x: Float[Array, "*rows K"]) -> Float[Array, "*rows K"]:
    """Returns `x / sqrt(|x|^2 + 1e-6)` in fp32 or wider, of length 1 or less up to rounding."""
    x = x.astype(accumulation_dtype(x))
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
