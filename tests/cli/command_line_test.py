"""--config and --config.KEY=VALUE: every key can be set; a mistake is one line with its name."""

import pytest

from linear_transformer.cli import command_line
from linear_transformer.config import configuration
from linear_transformer.errors import ConfigError
from linear_transformer.training import experiment

DEFAULT = "configs/default.py"


def read(*arguments):
    """The config of a command line, resolved."""
    line = command_line.split(["train.py", *arguments], DEFAULT)
    config = command_line.override(command_line.load(line.path), line.overrides)
    return experiment.resolve(config)


def test_arguments_are_sorted():
    line = command_line.split(
        [
            "train.py",
            "--workdir=x",
            "--config.a=1",
            "--config",
            "b.py:v",
            "--noconfig.c",
            "-v",
            "0",
        ],
        DEFAULT,
    )
    assert line.path == "b.py:v"
    assert line.rest == ["train.py", "--workdir=x", "-v", "0"]
    assert line.overrides == [("a", "1", "--config.a=1"), ("c", "false", "--noconfig.c")]
    assert command_line.split(["train.py"], DEFAULT) == (DEFAULT, [], ["train.py"])


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        # Keys that configs/default.py does not list.
        (["--config=configs/default.py:gla", "--config.model.mixers.gla.temperature=8"], None, 8.0),
        (["--config.optimizer.options.adam_b2=0.95"], "optimizer.options.adam_b2", 0.95),
        (["--config.optimizer.name=adamw", "--config.optimizer.options.b2=0.9"], None, 0.9),
        (["--config.model.embedding_norm=rmsnorm"], "model.embedding_norm", "rmsnorm"),
        (["--config.model.residual=gru"], "model.residual", "gru"),
        # Types.
        (["--config.num_steps", "7"], "num_steps", 7),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.sample=no"], "sample", False),
        (["--noconfig.sample"], "sample", False),
        (["--config.model.scan_layers"], "model.scan_layers", True),
        (["--config.model.scan_layers=None"], "model.scan_layers", True),
        (["--config.model.feed_forward_width=None"], "model.feed_forward_width", 512),
        (["--config.model.pattern=gla,softmax"], "model.pattern", ("gla", "softmax")),
        (["--config.model.pattern=('gla',)"], "model.pattern", ("gla",)),
        (["--config.model.pattern=gla", "--config.model.pattern=lru"], None, ("gla", "lru")),
        (["--config.optimizer.step_boundaries=(1, 2)"], "optimizer.step_boundaries", (1, 2)),
        (["--config.optimizer.step_boundaries=5"], "optimizer.step_boundaries", (5,)),
        (["--config.data.path=3"], "data.path", "3"),
        (
            [
                "--config=configs/recall/mqar.py",
                "--config.data.evaluation_options.pairs=((64, 2),)",
            ],
            "data.evaluation_options.pairs",
            ((64, 2),),
        ),
        (
            ["--config=configs/recall/mqar.py", "--config.data.options.fill=True"],
            "data.options.fill",
            True,
        ),
    ],
)
def test_values(arguments, key, value):
    key = key or arguments[-1].removeprefix("--config.").partition("=")[0]
    found = configuration.flatten(configuration.plain(read(*arguments)))[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.widht=3"], "--config.model.widht: no such key; did you mean width?"),
        # The wrong key is blamed, not the right one beside it.
        (["--config.model.width=64", "--config.model.widht=3"], "--config.model.widht: no such"),
        (["--config.modl.width=3"], "--config.modl: no such key; did you mean model?"),
        (["--config.steps=3"], "did you mean num_steps?"),
        (["--config.optimizer.options.b3=1"], "options.b3: no such key.*adam_b1.*ns_steps"),
        (["--config.model.mixers.linear.tau=1"], "linear.tau: no such key.*feature_map"),
        (["--config.model.mixers.glaa.tau=1"], "mixers.glaa: no such key; did you mean gla?"),
        (["--config.model.mixers.gla.temperature=8"], "without gla; --config.model.pattern=gla"),
        (["--config.model.vocab_size=8"], "config.model.vocab_size: no such key"),
        (["--config.data=3"], "--config.data=3: config.data is a section"),
        (["--config.num_steps=many"], "--config.num_steps=many: wrong type, must be int"),
        (["--config.num_steps=1.5"], "--config.num_steps=1.5: wrong type"),
        (["--config.num_steps=None"], "--config.num_steps=None: wrong type"),
        (["--config.num_steps"], "--config.num_steps: the value is missing"),
        (["--config.model.pattern=[1]"], "wrong type, must be a tuple of str"),
        (["--config.model.mixers.linear.key_width=x"], "wrong type, must be int or None"),
        (["--config.task=training"], "config.task is 'training'; choose one of language_mod"),
        (["--config.optimizer.name=adamm"], "config.optimizer.name is 'adamm'"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(*arguments)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 390


RETURN = "import ml_collections\ndef get_config(): return "
FILES = {
    "syntax": ("def get_config(:\n", r"line 1: SyntaxError"),
    "import": (
        "\nimport no_such_module\n",
        r"line 2: ModuleNotFoundError: No module named 'no_such",
    ),
    "exit": ("import sys\nsys.exit(0)\n", r"line 2: SystemExit: .*ends the program with status 0"),
    "nothing": ("x = 1\n", r"has no function get_config"),
    "raises": ("def get_config():\n  raise KeyError('a\\nb')\n", r"line 2: KeyError: 'a"),
    "none": ("def get_config(): pass\n", r"returns NoneType; it must be a ConfigDict"),
    "empty": (f"{RETURN}ml_collections.ConfigDict()\n", r"config.task is None; choose one of"),
    "short": (f"{RETURN}ml_collections.ConfigDict({{'task': 'synthetic'}})\n", "seed is missing"),
    "variant": ("def get_config(variant): pass\n", r"needs a variant"),
    "binary": ("\0", r"null bytes"),
}


@pytest.mark.parametrize("name", FILES)
def test_config_files(name, tmp_path):
    source, message = FILES[name]
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message) as error:
        read(f"--config={path}")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "nope.py", tmp_path):
        with pytest.raises(ConfigError, match=f"--config={path}: the file cannot be read"):
            read(f"--config={path}")
    with pytest.raises(ConfigError, match=r"piano\.py has no variants"):
        read("--config=configs/papers/hadjeres2021/piano.py:small")


EXTRA = """
from configs import default
def get_config():
    config = default.get_config()
    config.{} = 1
    return config
"""


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        *(
            (f"{section} = {value!r}", arguments, rf"config\.{section} is .*must be a section with")
            for section in ("data", "model", "optimizer", "mesh")
            for value, arguments in ((None, []), ("x", [f"--config.{section}.x=1"]))
        ),
        ("optimizer.name = None", [], r"config\.optimizer\.name is 'None'"),
        ("model.mixers.linear = 3", [], r"config\.model\.mixers\.linear is 3, a int; it must be a"),
        (
            "model.pattern = None",
            ["--config.model.mixers.linear.feature_map=relu"],
            r"config\.model\.pattern is None",
        ),
        (
            "optimizer.options = None",
            ["--config.optimizer.name=adam"],
            r"config\.optimizer\.options is None",
        ),
    ],
)
def test_wrong_types_of_a_file(change, arguments, message, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(EXTRA.replace("config.{} = 1", f"with config.ignore_type(): config.{change}"))
    with pytest.raises(ConfigError, match=message) as error:
        read(f"--config={path}", *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    ["extra", "data.extra", "model.extra", "optimizer.extra", "mesh.extra", "model.mixers.lru.x"],
)
def test_extra_keys_of_a_file(key, tmp_path):
    path = tmp_path / "extra.py"
    text = EXTRA.format(key).replace(
        "config.model.mixers.lru.x = 1", "config.model.mixers.lru = {'x': 1}"
    )
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.{key}: no such key"):
        read(f"--config={path}")


def test_options_of_another_optimizer_or_mixer_go():
    """They are the file's, and what they belonged to is not there any more."""
    scale = read("--config=configs/lm/scale.py:linear,125m", "--config.optimizer.name=sgd")
    assert dict(scale.optimizer.options) == {}
    gla = read("--config.model.pattern=gla")
    assert gla.model.mixers.to_dict() == {"gla": {}}
    assert gla.model.positions == "none"
    assert read("--config.model.pattern=softmax").model.positions == "sinusoidal"
