"""Mistakes of --compile_only that need no compiler."""

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import default
from configs.recall import mad
from linear_transformer.cli import compile_only
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import accelerators, program
from tests.training import runs


def masked():
    config = default.get_config("softmax")
    config.task = "masked_language_modelling"
    config.model.mixers = {"softmax": {"direction": "bidirectional"}}
    return config


@pytest.mark.parametrize("make", [masked, lambda: mad.get_config("compression,linear")])
def test_a_task_that_cannot_decode(make, monkeypatch):
    monkeypatch.setattr(accelerators, "describe_devices", lambda *_: jax.devices()[:1])
    config = make()
    with flagsaver.flagsaver(program="decode", topology="v5e:1x1"):
        flags.FLAGS.mark_as_parsed()
        message = rf"^--program=decode: config\.task is '{config.task}'; its model has no decoding"
        with pytest.raises(ConfigError, match=message):
            compile_only.report("train", config)


def test_unknown_program():
    with (
        flagsaver.flagsaver(),
        pytest.raises(ConfigError, match=r"--program=test: .*<train\|eval\|decode>"),
    ):
        program.parse_flags(["train.py", "--program=test"])


def test_help_lists_the_flag():
    assert "--program: <train|eval|decode>: " in runs.execute(["train.py", "--help"]).stdout
