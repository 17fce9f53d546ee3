"""The example of docs/adding_a_mechanism.md is a mixer, and computes what its docstring says."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "adding_a_mechanism.md"
B, T, D = 2, 8, 8


def test_the_added_mechanism():
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"__name__": "min_gru"}
    exec(compile(program, str(PAGE), "exec"), names)
    (mechanism,) = names["MECHANISMS"]
    mixer = mechanism(D, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)
    y, _ = mixer(x)
    z, candidate = np.asarray(nnx.sigmoid(mixer.gate(x))), np.asarray(mixer.candidate(x))
    h = np.zeros((B, T + 1, D), np.float32)
    for t in range(T):
        h[:, t + 1] = (1 - z[:, t]) * h[:, t] + z[:, t] * candidate[:, t]
    np.testing.assert_allclose(y, mixer.output(jnp.asarray(h[:, 1:])), atol=1e-6)
    _, state = mixer(x[:, :5], mixer.init_state(B))
    np.testing.assert_allclose(mixer(x[:, 5:], state)[0], y[:, 5:], atol=1e-6)
