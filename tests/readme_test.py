"""The README's program does what it says."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_program_runs():
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(compile(program, str(README), "exec"), names)
    assert names["o"].shape == (2, 1000, 4, 64)
    assert jnp.abs(names["y"]).max() > 1
    np.testing.assert_allclose(names["y_last"], names["y"][:, 999:], atol=1e-5)
