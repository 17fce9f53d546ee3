"""Configs: what follows from what, ranges of every number, and meanings of every key."""

import dataclasses
import typing

import pytest

from configs import default
from configs.lra import image, pathfinder
from configs.papers.hadjeres2021 import piano
from linear_transformer.config import configuration, schema
from linear_transformer.data import settings
from linear_transformer.errors import ConfigError
from linear_transformer.models.speech_recognizer import ENCODERS
from linear_transformer.nn.mixers.registry import MIXERS, mixer_options, option_meanings
from linear_transformer.training import capacity, experiment

DATACLASSES = dict.fromkeys(  # in this order, once each
    [
        experiment.ExperimentConfig,
        experiment.OptimizerConfig,
        experiment.MeshConfig,
        *ENCODERS.values(),
        *(cls for kind in experiment.TASKS.values() for cls in kind),
    ]
)


@pytest.mark.parametrize("cls", DATACLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range_and_every_key_a_meaning(cls):
    meanings = schema.meanings(cls)
    for name, hint in schema.hints(cls).items():
        if name in {field.name for field in dataclasses.fields(cls)}:
            options = {hint, *typing.get_args(hint)} if typing.get_origin(hint) is not tuple else {}
            numbers = {int, float} & set(options)
            assert not numbers or name in cls.RANGES, name
            assert meanings[name], name
    for name, allowed in cls.RANGES.items():
        assert float("nan") not in allowed, name
        assert -1 not in allowed, name


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_option_of_a_mixer_has_a_meaning(mixer):
    assert not mixer_options(mixer).keys() - option_meanings(mixer).keys()


def resolved(variant="linear", config=None, **changes):
    config = default.get_config(variant) if config is None else config
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return experiment.resolve(config)


NONSENSE = {
    "optimizer.learning_rate": -1.0,
    "optimizer.weight_decay": -1.0,
    "optimizer.clip_norm": float("nan"),
    "optimizer.warmup_steps": -1,
    "optimizer.schedule_steps": 2**31,
    "optimizer.step_boundaries": (10, 2**31),
    "optimizer.options.beta": 2.0,
    "optimizer.options.consistent_rms": float("nan"),
    "optimizer.final_fraction": 1.5,
    "model.width": 0,
    "model.dropout": 1.0,
    "model.num_layers": None,
    "model.feed_forward_ratio": -1.0,
    "model.mixers.linear.epsilon": -1.0,
    "model.mixers.linear.convolution": -4,
    "model.mixers.linear.key_width": 0,
    "model.activation": "sin",
    "data.batch_size": 0,
    "data.sequence_length": -1,
    "mesh.fsdp": 0,
    "data.evaluation_lengths": (2**31,),
    "seed": -1,
    "num_steps": 2**31,
    "eval_batches": 10**20,
    "log_every": 0,
    "ema_decay": 1.0,
    "label_smoothing": -0.1,
    "mask_rate": 0.5,  # of another task
    "beam_width": 3,
}


@pytest.mark.parametrize("key", NONSENSE)
def test_nonsense_is_refused(key):
    config = default.get_config()
    with config.unlocked(), config.ignore_type():
        *sections, name = key.split(".")
        part = config
        for section in sections:
            part = part[section]
        part[name] = NONSENSE[key]
    with pytest.raises(ConfigError, match=rf"config\.{key} is") as error:
        experiment.resolve(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["batch_size", "sequence_length", "dataset"])
def test_missing_keys_of_data(key):
    config = default.get_config()
    del config.data[key]
    with pytest.raises(ConfigError, match=rf"config\.data\.{key} is missing"):
        experiment.resolve(config)


def test_sizes_follow():
    assert resolved(model__width=512, model__num_heads=8).model.feed_forward_width == 2048
    assert resolved(model__feed_forward_width=5).model.feed_forward_width == 5
    assert resolved("lightning", model__width=768).model.feed_forward_width == 2048
    assert resolved("retnet").model.feed_forward_width == 256
    assert resolved("mamba").model.feed_forward_width == 0
    halves = resolved("transnormer_t2", model__num_layers=6).model.pattern
    assert halves == ("diag",) * 3 + ("norm",) * 3
    first = resolved("lightning", model__num_layers=3).model.pattern
    assert first == ("lightning_lrpe", "lightning", "lightning")
    long = resolved("flash_quad", data__sequence_length=512, model__positions="learned").model
    assert (long.mixers.flash_quad.divisor, long.max_positions) == (512, 512)
    assert resolved(config=piano.get_config(), model__width=128).model.feed_forward_width == 256
    assert resolved(num_steps=50, eval_every=None, checkpoint_every=None).checkpoint_every == 5


def test_sizes_of_long_range_arena_follow():
    config = image.get_config("linear,small")
    small = resolved(config=config, model__width=128, num_steps=100, data__sequence_length=64)
    assert small.model.feed_forward_width == 256
    assert small.model.max_positions == 65
    assert (small.optimizer.warmup_steps, small.eval_every) == (10, 10)
    with_cls = resolved(config=image.get_config("cosformer"), data__sequence_length=64)
    assert with_cls.model.pooling == "cls"
    assert with_cls.model.mixers.cosformer.max_length == with_cls.model.max_positions == 65
    assert resolved(config=image.get_config("gla")).model.pooling == "mean"
    assert resolved(config=pathfinder.get_config(), data__side=8).data.sequence_length == 64


def test_a_resolved_config_stays_as_it_is():
    once = resolved("hybrid")
    assert configuration.plain(experiment.resolve(once)) == configuration.plain(once)


def test_listing_has_every_key_with_its_meaning():
    lines = experiment.listing(default.get_config("gla"))
    keys = [line.partition("=")[0].removeprefix("--config.") for line in lines]
    assert {"seed", "model.residual", "model.mixers.gla.temperature"} < set(keys)
    assert {"optimizer.options.adam_b1", "data.packing", "mesh.fsdp"} < set(keys)
    (line,) = (line for line in lines if "feed_forward_width=" in line)
    assert line.startswith("--config.model.feed_forward_width=512 ")
    assert "(follows)" in line
    assert not [line for line in lines if not line.partition(" ")[2] and ".options." not in line]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__width": 10**10},
        {"model__feed_forward_width": 10**13},
        {"model__embedding_width": 10**20},
        {"model__num_outputs": 10**20, "model__tied": False},
        {"model__memory_keys": 10**6, "model__memory_layers": (0,)},
        *(
            {"model__mixers": {name: {option: 10**12 + 1}}, "model__pattern": (name,)}
            for name, option in (
                ("linear", "key_width"),
                ("performer", "features"),
                ("gsa", "slots"),
                ("delta_product", "steps"),
                ("mamba3", "rank"),
                ("mamba", "expansion"),
                ("retnet", "value_expansion"),
                ("rg_lru", "convolution"),
                ("softmax", "query_heads"),
                ("kda", "value_width"),
            )
        ),
        {"data__batch_size": 10**12},
        {"data__sequence_length": 10**12},
    ],
)
def test_sizes_are_compared_with_the_memory(changes):
    import jax

    config = default.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): x for k, x in changes.items()})
    key = next(iter(changes)).replace("__", r"\.")
    with pytest.raises(ConfigError, match=rf"config\.{key}.*bytes.* GiB") as error:
        capacity.check(experiment.resolve(config), jax.devices())
    assert "\n" not in str(error.value)
    capacity.check(experiment.resolve(default.get_config()), jax.devices())


def test_data_of_every_task_is_a_config_of_data():
    assert all(issubclass(kind.data, settings.DataConfig) for kind in experiment.TASKS.values())
