"""The first file that a newcomer reads: it learns, and its two modes are one function."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples import minimal


def test_it_learns_and_the_recurrence_gives_the_logits_of_the_parallel_pass(capsys):
    model = minimal.LanguageModel(width=16, heads=2, rngs=nnx.Rngs(0))
    text = np.frombuffer(b"attention " * 40, np.uint8)
    losses = minimal.train(model, text, steps=8, batch=2, length=64)
    assert losses[-1] < losses[0] - 1
    assert f"{losses[-1]:.3f} bits per byte" in capsys.readouterr().out
    prompt_BT = jnp.asarray([list(b"att"), list(b"ten")])
    tokens_BT, logits_BTE = minimal.sample(model, prompt_BT, jax.random.key(0), length=70)
    parallel_BTE, _ = nnx.jit(minimal.LanguageModel.__call__)(
        model, jnp.concatenate([prompt_BT, tokens_BT], axis=1)
    )
    assert jnp.std(logits_BTE) > 0.1
    np.testing.assert_allclose(logits_BTE, parallel_BTE[:, 2:-1], atol=1e-4)
