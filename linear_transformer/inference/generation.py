"""Autoregressive decoding: the prompt in parallel, then one compiled loop over tokens."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.errors import ConfigError
from linear_transformer.nn.stack import separate_layers
from linear_transformer.types import PRNGKey

# Draws the next token of each sequence from the model's outputs (B, E); must be hashable.
Draw = Callable[[Array, PRNGKey], Array]
SEGMENT = 32  # tokens per call of the compiled loop and per piece of streamed text


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Rule that draws a token from logits.

    Attributes:
      temperature: divisor of the logits; 0 takes the most probable token.
      top_k: number of most probable tokens to draw from, 0 for all.
      top_p: total probability of the most probable tokens to draw from, 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"--temperature={self.temperature}: must be 0 or more, and finite")
        if self.top_k < 0:
            raise ConfigError(f"--top_k={self.top_k}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p={self.top_p}: must be in (0, 1]")

    def __call__(self, logits_BE: Float[Array, "B E"], key: PRNGKey) -> Int[Array, " B"]:
        if self.temperature == 0:
            return jnp.argmax(logits_BE, axis=-1).astype(jnp.int32)
        logits_BE = logits_BE / self.temperature
        if self.top_k and self.top_k < logits_BE.shape[-1]:
            least = lax.top_k(logits_BE, self.top_k)[0][:, -1:]
            logits_BE = jnp.where(logits_BE < least, -jnp.inf, logits_BE)
        if self.top_p < 1:
            ordered = -jnp.sort(-logits_BE, axis=-1)
            probabilities = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            least = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), -1, keepdims=True)
            logits_BE = jnp.where(logits_BE < least, -jnp.inf, logits_BE)
        return jax.random.categorical(key, logits_BE).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    graphdef: nnx.GraphDef, sampler: Draw, parameters: Any, tokens_BT: Array, key: PRNGKey
) -> tuple[Any, Int[Array, " B"]]:
    """Reads the prompt in parallel; returns the state and the first new token of each sequence."""
    model = nnx.merge(graphdef, parameters)
    logits_BTE, state = model(tokens_BT, model.init_state(tokens_BT.shape[0]))
    return state, sampler(logits_BTE[:, -1], key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def decode(
    graphdef: nnx.GraphDef,
    sampler: Draw,
    num_tokens: int,
    parameters: Any,
    state: Any,
    token_B: Int[Array, " B"],
    key: PRNGKey,
) -> tuple[Any, Int[Array, "B T"]]:
    """Decodes `num_tokens` tokens in a `lax.scan`, one per step; the state is updated in place."""

    graphdef, parameters = separate_layers(graphdef, parameters)

    def step(carry, key):
        state, token_B = carry
        logits_BTE, state = nnx.merge(graphdef, parameters)(token_B[:, None], state)
        token_B = sampler(logits_BTE[:, 0], key)
        return (state, token_B), token_B

    (state, _), tokens_TB = lax.scan(step, (state, token_B), jax.random.split(key, num_tokens))
    return state, tokens_TB.T


def generate(
    graphdef: nnx.GraphDef,
    parameters: Any,
    prompt: Sequence[int],
    num_tokens: int,
    sampler: Sampler,
    seed: int,
) -> Iterator[int]:
    """Yields `num_tokens` ids that continue the prompt, in pieces of SEGMENT.

    Raises:
      ConfigError: the model's state or positions can't hold prompt and continuation.
    """
    if num_tokens < 1:
        return
    model = nnx.merge(graphdef, parameters)
    needed = len(prompt) + num_tokens
    if model.capacity is not None and model.capacity < needed:
        raise ConfigError(
            f"prompt and sample are {needed:,} tokens, and the model's state or positions hold "
            f"{model.capacity:,}; lower --num_tokens"
        )
    key = jax.random.key(seed)
    state, token_B = prefill(
        graphdef, sampler, parameters, jnp.asarray([prompt], jnp.int32), jax.random.fold_in(key, 0)
    )
    yield int(token_B[0])
    for start in range(1, num_tokens, SEGMENT):
        state, tokens_BT = decode(
            graphdef,
            sampler,
            SEGMENT,
            parameters,
            state,
            token_B,
            jax.random.fold_in(key, start),
        )
        token_B = tokens_BT[:, -1]
        yield from np.asarray(tokens_BT[0, : num_tokens - start]).tolist()
