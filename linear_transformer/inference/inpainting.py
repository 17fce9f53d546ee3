"""Filling a gap with an aligned encoder-decoder: the prefix in parallel, then the gap as an RNN.

The source is encoded once.  The decoder reads the events before the gap in parallel and keeps its
state; then one compiled loop writes the events of the gap.  The events after the gap are known
through the encoder and cost nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from linear_transformer.inference.generation import Sampler
from linear_transformer.nn.stack import separate_layers
from linear_transformer.types import PRNGKey

GapEvents = Int[Array, "B M C"]
GapLogits = tuple[Float[Array, "B M _"], ...]


@functools.partial(jax.jit, static_argnums=0)
def encode(
    graphdef: nnx.GraphDef, parameters: Any, events_BNC: Array, elapsed_BN: Array, masked_BN: Array
) -> Float[Array, "B T D"]:
    """Computes the memory of the whole source, in which the gap is masked."""
    model = nnx.merge(graphdef, parameters)
    return model.encode(model.embed_source(events_BNC, elapsed_BN, masked_BN))


@functools.partial(jax.jit, static_argnums=0)
def read_prefix(
    graphdef: nnx.GraphDef,
    parameters: Any,
    events_BNC: Array,
    elapsed_BN: Array,
    memory_BTD: Float[Array, "B T D"],
) -> tuple[Any, Float[Array, "B 1 D"]]:
    """Returns the decoder's state and its next input after all events before the gap."""
    model = nnx.merge(graphdef, parameters)
    batch, num_events, num_channels = events_BNC.shape
    state, first_B1D = model.init_state(batch), model.first_input(batch)
    if num_events == 0:
        return state, first_B1D
    target_BTD = model.embed_target(events_BNC, elapsed_BN)
    inputs_BTD = jnp.concatenate([first_B1D, target_BTD[:, :-1]], axis=1)
    _, state = model.decode(inputs_BTD, memory_BTD[:, : num_events * num_channels], state)
    return state, target_BTD[:, -1:]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def fill(
    graphdef: nnx.GraphDef,
    sampler: Sampler,
    num_values: tuple[int, ...],
    time_shift: tuple[int, ...] | None,
    parameters: Any,
    state: Any,
    input_B1D: Float[Array, "B 1 D"],
    memory_BTD: Float[Array, "B T D"],
    first_index: Int[Array, ""],
    elapsed_B: Int[Array, " B"],
    time_left_B: Int[Array, " B"],
    key: PRNGKey,
) -> tuple[GapEvents, GapLogits]:
    """Writes the events of the gap, one token after the other.

    Args:
      graphdef, parameters: the model.
      sampler: draws a token from logits.
      num_values: number of values of each channel; special tokens are never drawn.
      time_shift: hundredths of a second for each value of the last channel, or None.
      state, input_B1D: results of `read_prefix`.
      memory_BTD: memory of the positions of the gap only.
      first_index: number of the gap's first event in the source.
      elapsed_B: time of that event, in hundredths of a second.
      time_left_B: longest sum of the time shifts, so that no event is later; the last event's own
        time shift leads out of the gap and is free.
      key: random key of the sampler.

    Returns:
      The events, and the logits that they were drawn from, before special tokens and too long time
      shifts were excluded.
    """
    batch, num_tokens, width = memory_BTD.shape
    num_channels = len(num_values)
    num_events = num_tokens // num_channels
    memory_NCBD = memory_BTD.reshape(batch, num_events, num_channels, width).transpose(1, 2, 0, 3)

    graphdef, parameters = separate_layers(graphdef, parameters)

    def event(carry, scanned):
        state, input_B1D, elapsed_B, left_B = carry
        memory_CBD, number, key = scanned
        model = nnx.merge(graphdef, parameters)
        tokens, logits = [], []
        for channel, size in enumerate(num_values):
            h_B1D, state = model.decode(input_B1D, memory_CBD[channel][:, None], state)
            logits_BE = model.logits(h_B1D[:, 0], channel)
            allowed_BE = logits_BE[:, :size]
            if time_shift is not None and channel == num_channels - 1:
                too_long_BE = jnp.array(time_shift) > left_B[:, None]
                last = number == num_events - 1
                allowed_BE = jnp.where(too_long_BE & ~last, -jnp.inf, allowed_BE)
            token_B = sampler(allowed_BE, jax.random.fold_in(key, channel))
            input_B1D = model.target(
                token_B[:, None],
                np.array([channel]),
                jnp.full((batch, 1), first_index + number),
                elapsed_B[:, None],
            )
            tokens.append(token_B)
            logits.append(logits_BE)
        if time_shift is not None:
            shift_B = jnp.array(time_shift)[tokens[-1]]
            elapsed_B, left_B = elapsed_B + shift_B, left_B - shift_B
        carry = (state, input_B1D, elapsed_B, left_B)
        return carry, (jnp.stack(tokens, axis=-1), tuple(logits))

    numbers = jnp.arange(num_events)
    keys = jax.random.split(key, num_events)
    carry = (state, input_B1D, elapsed_B, time_left_B)
    _, (events_NBC, logits) = lax.scan(event, carry, (memory_NCBD, numbers, keys))
    return events_NBC.swapaxes(0, 1), tuple(x.swapaxes(0, 1) for x in logits)


def inpaint(
    graphdef: nnx.GraphDef,
    parameters: Any,
    events_BNC: Int[np.ndarray, "B N C"],
    elapsed_BN: Int[np.ndarray, "B N"],
    start: int,
    stop: int,
    *,
    num_values: tuple[int, ...],
    time_shift: tuple[int, ...] | None,
    time_left: int,
    sampler: Sampler,
    seed: int,
) -> tuple[GapEvents, GapLogits]:
    """Replaces events `start` to `stop`; their values and the later elapsed times are not used.

    Args:
      graphdef, parameters: the model.
      events_BNC: prefix, gap and suffix.
      elapsed_BN: time of each event, in hundredths of a second; the gap's first event keeps its
        time.
      start, stop: the gap, in events.
      num_values, time_shift, sampler: see `fill`.
      time_left: hundredths of a second from the gap's first onset to its latest possible onset.
      seed: seed of the sample.

    Returns:
      The events of the gap (B, stop - start, C) and their logits.
    """
    num_channels = len(num_values)
    batch, num_events, _ = events_BNC.shape
    masked_BN = np.zeros((batch, num_events), bool)
    masked_BN[:, start:stop] = True
    memory_BTD = encode(graphdef, parameters, events_BNC, elapsed_BN, masked_BN)
    state, input_B1D = read_prefix(
        graphdef, parameters, events_BNC[:, :start], elapsed_BN[:, :start], memory_BTD
    )
    return fill(
        graphdef,
        sampler,
        num_values,
        time_shift,
        parameters,
        state,
        input_B1D,
        memory_BTD[:, start * num_channels : stop * num_channels],
        jnp.int32(start),
        jnp.asarray(elapsed_BN[:, start]),
        jnp.full((batch,), time_left, jnp.int32),
        jax.random.key(seed),
    )
