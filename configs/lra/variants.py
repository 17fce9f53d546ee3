"""Variants of the Long Range Arena configs: mechanisms by name, and their training settings.

A variant is a name, alone or followed by ",small" or ",quick".  Names are the mechanisms that
`python -m linear_transformer.cli.mechanisms` lists, and lion_s, LION-S in the setting of its paper.
The name convolution is the control that shows how local a task is.

Mechanisms are bidirectional if possible; the others are causal and pool by the mean.  A name alone
has the setting of Long Range Arena's released code, except TransNormer and LION-S, which have
settings of their own; ",small" is 2 layers of width 64 with 2 heads, as in Nystromformer's
experiments, and ",quick" is the same model, trained for minutes on 2 CPU cores.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default, mechanisms
from linear_transformer.errors import ConfigError
from linear_transformer.nn.mixers.registry import MIXERS, feed_forward_ratio

# Name of a setting -> name of its mechanism.
_SAME_AS = {"lion_s": "lion"}
NAMES = (*mechanisms.TABLE, *_SAME_AS)

# Settings for all mechanisms, besides the settings of the papers.
SCALES = ("small", "quick")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of a model, and its training.

    Attributes:
      feed_forward: feed-forward width of mechanisms with a ratio of 4 to the model width; it is
        scaled in proportion for mechanisms with another ratio.
      positions: positions of mechanisms that need them.
      norm: norm of the sub-layers; None is the mechanism's own norm.
      optimizer: entries of `config.optimizer`, AdamW.
    """

    num_layers: int
    width: int
    num_heads: int
    feed_forward: int
    batch_size: int
    num_steps: int
    sequence_length: int
    optimizer: dict[str, Any]
    positions: str = "sinusoidal"
    pooling: str = "mean"
    dropout: float = 0.0
    norm: str | None = None


def adam(
    learning_rate: float,
    *,
    warmup_steps: int | None,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    options: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Entries of `config.optimizer`: warm-up (None is a tenth of the steps), then decay to 0."""
    return {
        "name": "adamw",
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "warmup_fraction": 0.1,
        "schedule": schedule,
        "final_fraction": 0.0,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "options": {} if options is None else options,
    }


def lra_adam(learning_rate: float, **options: Any) -> dict[str, Any]:
    """Entries of `config.optimizer` for Adam, as in every config of Long Range Arena's code."""
    return adam(learning_rate, options={"b1": 0.9, "b2": 0.98, "eps": 1e-9}, **options)


def lra_rsqrt(factor: float, warmup_steps: int) -> dict[str, Any]:
    """Adam of text and ListOps: factor * min(1, step / warmup) / sqrt(max(step, warmup))."""
    return lra_adam(
        factor / warmup_steps**0.5, schedule="rsqrt", warmup_steps=warmup_steps, weight_decay=0.1
    )


def small(*, batch_size: int, num_steps: int, **options: Any) -> Setting:
    """Nystromformer's setting; assumed is the schedule, a tenth of warm-up to 1e-4 and a cosine."""
    return Setting(
        num_layers=2,
        width=64,
        num_heads=2,
        feed_forward=128,
        batch_size=batch_size,
        num_steps=num_steps,
        optimizer=adam(1e-4, warmup_steps=None),
        **options,
    )


def quick(setting: Setting, *, batch_size: int, num_steps: int) -> Setting:
    """Returns a setting for the same model, with minutes of training by Muon on 2 CPU cores."""
    optimizer = {
        "name": "muon",
        "learning_rate": 1e-2,
        "warmup_steps": 50,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }
    return dataclasses.replace(
        setting, batch_size=batch_size, num_steps=num_steps, optimizer=optimizer
    )


def transnormer(
    *, learning_rate: float, warmup_steps: int, feed_forward: float, width: int = 128, **options
) -> Setting:
    """TransNormer's setting: AdamW, a cosine over 50,000 steps, the width of its run script.

    The sub-layers have batch norms.  Deviations: LRPE with a reflection and learned frequencies; 8
    heads in all layers.

    Args:
      feed_forward: feed-forward width over model width.
    """
    return Setting(
        width=width,
        num_heads=8,
        feed_forward=int(feed_forward * width),
        num_steps=50_000,
        optimizer=adam(learning_rate, warmup_steps=warmup_steps),
        norm="batchnorm",
        **options,
    )


def lion(*, width: int, num_steps: int, weight_decay: float, **options: Any) -> Setting:
    """LION's setting: depth, width, batches and epochs of S5, AdamW with a cosine from 5e-4.

    Assumed are 8 heads, a feed-forward of 4 widths, a tenth of warm-up, and S5's batch norm.
    """
    return Setting(
        width=width,
        num_heads=8,
        feed_forward=4 * width,
        num_steps=num_steps,
        optimizer=adam(5e-4, warmup_steps=None, weight_decay=weight_decay),
        norm="batchnorm",
        **options,
    )


def parse(
    variant: str, sizes: tuple[str, ...] = (), names: tuple[str, ...] = NAMES
) -> tuple[str, str | None, str | None]:
    """Parses "linear,small" as ("linear", None, "small"), "linear,128" as ("linear", "128", None).

    Raises:
      ConfigError: there is no such variant.
    """
    name, *rest = variant.split(",")
    scale = rest.pop() if rest and rest[-1] in SCALES else None
    size = rest
    if name not in names or size not in ([], *([s] for s in sizes)):
        size_note = f", then {' or '.join(',' + s for s in sizes)} if any" if sizes else ""
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(names)}{size_note}, "
            "each alone or with ',small' or ',quick'"
        )
    return name, size[0] if size else None, scale


def model(name: str, setting: Setting) -> dict[str, Any]:
    """Returns the entries of `config.model` that differ from configs/default.py."""
    choices = mechanisms.model(
        _SAME_AS.get(name, name), num_layers=setting.num_layers, names=mechanisms.TABLE
    )
    if choices["pattern_fill"] == "repeat":  # whole repetitions of the pattern
        period = len(choices["pattern"])
        choices["num_layers"] = -(-choices["num_layers"] // period) * period
    mixers = {
        mixer: MIXERS[mixer].bidirectional_options(options)
        for mixer, options in choices["mixers"].items()
    }
    mechanisms.follow_data(mixers)
    usual = feed_forward_ratio(choices["pattern"], choices["gated"])
    choices["feed_forward_ratio"] = usual * setting.feed_forward / (4 * setting.width)
    if not any(MIXERS[mixer].needs_no_positions(given) for mixer, given in mixers.items()):
        choices["positions"] = setting.positions
    if setting.norm is not None:
        choices["norm"] = setting.norm
    return choices | {
        "mixers": mixers,
        "width": setting.width,
        "num_heads": setting.num_heads,
        "dropout": setting.dropout,
        "pooling": "auto" if setting.pooling == "cls" else setting.pooling,
        "input": "tokens",
    }


def get_config(
    name: str, scale: str | None, settings: Mapping[str, Setting], data: dict[str, Any]
) -> ml_collections.ConfigDict:
    """Returns the config of an experiment.

    Args:
      name: a name in NAMES.
      scale: "small", "quick", or None for the setting of the mechanism itself.
      settings: settings "lra", "small" and "quick", and settings of single mechanisms by name;
        "transnormer" is for both TransNormers.
      data: entries of `config.data` besides its sizes.
    """
    kind = "transnormer" if name.startswith("transnormer") else name
    setting = settings[scale] if scale else settings.get(kind, settings["lra"])
    config = default.get_config()
    config.task = "sequence_classification"
    config.sample = False
    config.num_steps = setting.num_steps
    config.log_every = 100
    config.eval_every = config.checkpoint_every = None
    config.data = ml_collections.ConfigDict(
        data | {"batch_size": setting.batch_size, "sequence_length": setting.sequence_length}
    )
    choices = model(name, setting)
    config.model.mixers = ml_collections.ConfigDict(choices.pop("mixers"))
    del config.model.tied
    with config.model.unlocked():
        config.model.update(choices)
    if scale is None:  # some of these models are deep
        config.model.scan_layers = None
    config.optimizer.update(setting.optimizer)
    return config
