"""What `pip install` and `import linear_transformer` give."""

import pathlib
import subprocess
import sys
import tomllib

import pytest

import linear_transformer

ROOT = pathlib.Path(__file__).parents[1]
# Not needed by an operation; some of them may not even be installed.
HEAVY = {"flax", "grain", "kaldi_native_fbank", "matplotlib", "mido", "ml_collections", "optax"}
HEAVY |= {"orbax", "PIL", "rich", "soundfile", "tensorboardX", "tensorstore", "tokenizers"}
PROGRAM = """
import sys, linear_transformer
assert "jax" not in sys.modules
linear_transformer.linear_attention
print(*{name.partition(".")[0] for name in sys.modules})
linear_transformer.GatedDeltaNet
print(*{name.partition(".")[0] for name in sys.modules})
import linear_transformer.cli.training
assert "jax.experimental.pallas" not in sys.modules
"""


def test_an_operation_imports_jax_and_a_mixer_flax():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    of_operation, of_mixer = (set(line.split()) for line in done.stdout.splitlines())
    assert not HEAVY & of_operation
    assert HEAVY & of_mixer >= {"flax"}
    assert not {"grain", "matplotlib", "mido", "soundfile", "tensorboardX"} & of_mixer


def test_public_names():
    names = {name: getattr(linear_transformer, name) for name in linear_transformer.__all__}
    assert {"linear_attention", "GatedDeltaNet", "MIXERS", "LanguageModel"} <= names.keys()
    assert dir(linear_transformer) == sorted(names)
    for name, value in names.items():
        if name.islower() and callable(value):
            assert value.__module__.startswith("linear_transformer.")
            assert value.__name__ == name
    with pytest.raises(AttributeError, match="'linear_transformer' has no attribute 'nothing'"):
        linear_transformer.nothing  # noqa: B018


def test_requirements_that_are_metadata():
    """setuptools reads these files, and can't read an option such as `-r`."""
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    entries = [dynamic["dependencies"], *dynamic["optional-dependencies"].values()]
    for name in (name for entry in entries for name in entry["file"]):
        assert not any(line.startswith("-") for line in (ROOT / name).read_text().splitlines())
