"""Whether an experiment can fit into memory at all, by its config alone.

Sizes are compared before anything is read, allocated or compiled.  They are lower bounds: what is
refused cannot fit, what passes may still not fit.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from linear_transformer.errors import ConfigError
from linear_transformer.runtime import accelerators
from linear_transformer.types import Device

_GIB = 2**30
_BLOCK = 10_000  # bytes of the Python objects of a layer, whatever its width
_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")  # the limit of a container
# Options of mixers that are a side of a matrix whose other side is the model's width.
_SIDES = ("key_width", "state_width", "gate_rank", "decay_rank", "rate_rank", "mix_rank", "dt_rank")


class Need(NamedTuple):
    """Bytes that something takes, and the keys whose product they are."""

    what: str
    keys: tuple[str, ...]
    size: int


def check(config: ml_collections.ConfigDict, devices: Sequence[Device]) -> None:
    """Compares what a config needs with the memory of the devices and of this machine.

    Args:
      config: resolved (`experiment.resolve`).
      devices: that the parameters may be spread over.

    Raises:
      ConfigError: names the keys and the bytes.
    """
    of_devices = sum(map(_memory, devices))
    for needs, memory, where in (
        (_parameters(config.model), of_devices, f"{len(devices)} x {devices[0].device_kind}"),
        (_batch(config.data), _host_memory(), "this machine"),
    ):
        for what, keys, size in needs:
            if size > memory:
                values = ", ".join(f"config.{key}={_value(config, key)}" for key in keys)
                raise ConfigError(
                    f"{values}: {what} of {size:,} bytes ({size // _GIB:,} GiB) or more; the "
                    f"memory of {where} is {memory / _GIB:,.0f} GiB"
                )


def _parameters(model: ml_collections.ConfigDict) -> Iterator[Need]:
    """Parameters in fp32, without gradients."""
    what = "parameters"
    width_key = "width" if "width" in model else "hidden"
    width = model[width_key]
    layer_keys = [k for k in ("num_layers", "encoder_layers", "decoder_layers") if k in model]
    layers = sum(model[key] for key in layer_keys) or sum(model.get("stage_blocks", ()))
    keys = tuple(f"model.{key}" for key in (width_key, *layer_keys))
    square = 0 if "convolution" in model.get("pattern", ()) else 4 * width**2
    yield Need(what, keys, layers * max(square, _BLOCK))
    if hidden := model.get("feed_forward_width"):
        yield Need(what, (*keys, "model.feed_forward_width"), layers * 8 * width * hidden)
    if rows := model.get("max_positions"):
        yield Need(what, ("model.width", "model.max_positions"), 4 * width * rows)
    for mixer, options in model.get("mixers", {}).items():
        for option in _SIDES:
            if side := options.get(option):
                key = f"model.mixers.{mixer}.{option}"
                yield Need(what, (key, "model.width"), 4 * width * side)


def _batch(data: ml_collections.ConfigDict) -> Iterator[Need]:
    """Inputs, targets and weights of a batch."""
    keys = [key for key in ("batch_size", "sequence_length", "max_frames") if key in data]
    numbers = math.prod(data[key] for key in keys)
    if "image_size" in data:
        keys, numbers = [*keys, "image_size"], numbers * data.image_size**2
    yield Need("a batch", tuple(f"data.{key}" for key in keys), 4 * numbers)
    for option, value in data.get("options", {}).items():
        if type(value) is int:
            yield Need("the options", (f"data.options.{option}",), 8 * value)


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


def _memory(device: Device) -> int | float:
    """Bytes of a device; infinite where it does not say."""
    if device.platform == "cpu":
        return _host_memory() / jax.device_count()
    accelerator = accelerators.find(device.device_kind)
    if accelerator is not None:
        return accelerator.memory
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)


def _host_memory() -> int | float:
    """Bytes of this machine, or of the container that the process is in."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on every system
        return math.inf
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical
