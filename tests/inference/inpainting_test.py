"""Filling a gap step by step is the parallel model, and never breaks the rules of the gap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.inference import inpainting
from linear_transformer.inference.generation import Sampler
from linear_transformer.models.aligned_encoder_decoder import (
    AlignedEncoderDecoder,
    AlignedEncoderDecoderConfig,
)
from tests.layers import slow_except

NUM_VALUES = (11, 7, 6)
TIME_SHIFT = (0, 2, 10, 30, 100, 500)
BATCH, EVENTS = 2, 12


@functools.cache
def make():
    config = AlignedEncoderDecoderConfig(
        vocab_sizes=tuple(n + 3 for n in NUM_VALUES),
        width=16,
        encoder_layers=1,
        decoder_layers=2,
        num_heads=2,
        feed_forward_width=24,
    )
    return nnx.split(AlignedEncoderDecoder(config, rngs=nnx.Rngs(0)))


def elapsed_of(events):
    shifts = np.array(TIME_SHIFT)[events[..., -1]]
    return np.cumsum(shifts, axis=1) - shifts


def fill(start, stop, *, time_left=10_000, sampler=None, seed=0, change=None):
    """(events with the gap filled, elapsed, logits of the gap)."""
    rng = np.random.default_rng(0)
    events = np.stack([rng.integers(n, size=(BATCH, EVENTS)) for n in NUM_VALUES], axis=-1)
    events = events.astype(np.int32)
    elapsed = elapsed_of(events).astype(np.int32)
    if change is not None:
        change(events, elapsed)
    filled, logits = inpainting.inpaint(
        *make(),
        events,
        elapsed,
        start,
        stop,
        num_values=NUM_VALUES,
        time_shift=TIME_SHIFT,
        time_left=time_left,
        sampler=sampler or Sampler(),
        seed=seed,
    )
    filled = np.asarray(filled)
    whole = np.concatenate([events[:, :start], filled, events[:, stop:]], axis=1)
    times = elapsed[:, start : start + 1] + elapsed_of(filled)
    elapsed = np.concatenate([elapsed[:, :start], times, elapsed[:, stop:]], axis=1)
    return whole, elapsed.astype(np.int32), logits


@pytest.mark.parametrize(
    ("start", "stop"), slow_except(((4, 9),), ((4, 9), (0, 3), (7, 12), (0, 12), (5, 6)))
)
def test_equals_parallel(start, stop):
    """The logits of each step are those of one call on the filled events."""
    events, elapsed, logits = fill(start, stop)
    masked = np.zeros((BATCH, EVENTS), bool)
    masked[:, start:stop] = True
    expected = nnx.merge(*make())(*map(jnp.asarray, (events, elapsed, masked)))
    for actual_BNE, expected_BNE in zip(logits, expected, strict=True):
        inside = expected_BNE[:, start:stop]
        assert actual_BNE.shape == inside.shape
        np.testing.assert_allclose(actual_BNE, inside, rtol=0, atol=1e-5)
        assert float(jnp.std(inside)) > 0.1  # or the tolerance would say nothing


def test_gap_is_not_read():
    """What was in the gap, and the times that it led to, are no part of the answer."""

    def change(events, elapsed):
        events[:, 4:9] = 0
        elapsed[:, 5:9] = 77

    expected, actual = fill(4, 9), fill(4, 9, change=change)
    np.testing.assert_array_equal(actual[0], expected[0])

    def change_after(events, elapsed):
        events[:, 10, 0] = (events[:, 10, 0] + 1) % NUM_VALUES[0]

    after = fill(4, 9, change=change_after)
    assert not np.array_equal(after[2][0], expected[2][0])


def test_no_special_tokens_and_seeds():
    fills = [fill(4, 9, seed=seed)[0][:, 4:9] for seed in range(20)]
    assert (np.stack(fills) < NUM_VALUES).all()
    assert len({f.tobytes() for f in fills}) == 20
    np.testing.assert_array_equal(fill(4, 9, seed=3)[0][:, 4:9], fills[3])
    greedy = [fill(4, 9, seed=s, sampler=Sampler(temperature=0.0))[0] for s in (0, 1)]
    np.testing.assert_array_equal(greedy[0], greedy[1])


@pytest.mark.parametrize("time_left", [0, 1, 47, 130])
def test_time_of_the_gap(time_left):
    """No onset of the gap is later than its end."""
    longest = 0
    for seed in range(10):
        _, elapsed, _ = fill(4, 9, time_left=time_left, seed=seed)
        spent = elapsed[:, 8] - elapsed[:, 4]
        assert (spent <= time_left).all()
        longest = max(longest, spent.max())
    assert longest > time_left / 3 or time_left < 2


def test_one_loop_over_the_gap_only():
    """The compiled loop has as many steps as the gap has events, whatever is around it."""
    graphdef, parameters = make()
    model = nnx.merge(graphdef, parameters)
    channels = len(NUM_VALUES)
    jaxpr = jax.make_jaxpr(
        lambda memory: inpainting.fill(
            graphdef,
            Sampler(),
            NUM_VALUES,
            TIME_SHIFT,
            parameters,
            model.init_state(1),
            model.first_input(1),
            memory,
            jnp.int32(500),
            jnp.zeros(1, jnp.int32),
            jnp.full(1, 100, jnp.int32),
            jax.random.key(0),
        )
    )(jnp.zeros((1, 5 * channels, 16)))
    lengths = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                lengths.append(equation.params["length"])
            else:
                for value in equation.params.values():
                    if hasattr(value, "jaxpr"):
                        visit(value.jaxpr)

    visit(jaxpr.jaxpr)
    assert lengths == [5]
