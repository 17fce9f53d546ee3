"""Distributed processes that train one model: start, agreement, collectives, end.

Nothing is guessed: a process is alone unless a flag says otherwise. Every process runs the same
program on its own devices and sequences; only process 0 writes files and prints.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from linear_transformer.errors import ConfigError, UserError

_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "off",
    ["off", "auto"],
    "auto: join the other processes that the environment describes (TPU slice, Slurm, Open MPI).",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where the processes meet."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes that train together.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", lower_bound=0
)

_Result = TypeVar("_Result")

HEARTBEAT_SECONDS = 60  # a process that is silent for this time counts as lost and ends the others
_JOIN_SECONDS = 300
_LAST_WORDS_SECONDS = 5  # for the other processes to report their errors
FAREWELL = (
    "this process fails, and with it all others; it may have lost one of them. The same command in "
    "all processes goes on from the last checkpoint"
)


def initialize() -> None:
    """Joins the other processes as the flags say; call it before anything is computed.

    With none of the flags the process is alone. `--coordinator_address`, `--num_processes` and
    `--process_id` go together; `--distributed=auto` takes all three from the environment. If a
    process is lost, XLA ends the others within HEARTBEAT_SECONDS, with a message and status 134.

    Raises:
      ConfigError: flags do not go together, the environment describes no processes, or processes
        were started with different flags.
    """
    names = (_COORDINATOR.name, _NUM_PROCESSES.name, _PROCESS_ID.name)
    coordinator, size, index = values = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    given = [f"--{name}" for name, value in zip(names, values, strict=True) if value is not None]
    auto = _DISTRIBUTED.value == "auto"
    if auto and given:
        raise ConfigError(f"--distributed=auto finds {given[0]} itself; leave one of them out")
    if given and len(given) < len(names):
        missing = next(f"--{name}" for name in names if f"--{name}" not in given)
        raise ConfigError(f"{given[0]} needs {missing} too")
    if size is not None and index is not None and index >= size:
        raise ConfigError(f"--process_id={index}: must be less than --num_processes={size}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator_address={coordinator}: must be host:port")
    if not (auto or given):
        return
    print(f"{'processes:':12} waiting for all of them, at most {_JOIN_SECONDS} s", flush=True)
    # JAX's own handler of SIGTERM waits for a step, which may never come (see `training.stop`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _default_sigint():
            jax.distributed.initialize(
                *values,
                initialization_timeout=_JOIN_SECONDS,
                cluster_detection_method=None if auto else "deactivate",
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except ValueError as error:  # nothing has been started yet
        raise ConfigError(
            "--distributed=auto: there is no TPU slice, Slurm or Open MPI here; give "
            + ", ".join(f"--{name}" for name in names)
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--coordinator_address={values[0]}: {_first_line(error)}") from error
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    agree({f"--{name}": value for name, value in _given_flags().items()})


@contextlib.contextmanager
def _default_sigint() -> Iterator[None]:
    """Lets Ctrl-C end the process while it is in C++, where Python's handler would not run."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _given_flags() -> dict[str, str]:
    """Returns the flags of this command line as text, without flags that differ between processes.

    The config is left out: `training.agreement` compares its values.
    """
    return {
        name: str(flags.FLAGS[name].value)
        for name in flags.FLAGS
        if flags.FLAGS[name].present
        and name not in (_PROCESS_ID.name, "profile")  # flags of process 0 alone
        and name.partition(".")[0] != "config"
    }


def check_joined() -> None:
    """Raises a ConfigError if JAX sees processes that no flag announced, as on a TPU slice."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ConfigError(
            f"this is one of {jax.process_count()} processes; start all with --distributed=auto"
        )


def has_others() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def wait_for_last_words() -> None:
    """Waits before a process that failed ends while others run.

    The end of process 0 ends the others at once, so process 0 first gives them time to report their
    own errors: most mistakes are the same in all processes.
    """
    if is_first():
        time.sleep(_LAST_WORDS_SECONDS)


def is_first() -> bool:
    """Returns whether this process is process 0, which writes and prints."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Gathers one JSON value per process in all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(text.size))
    padded = np.pad(text, (0, sizes.max() - text.size))
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def agree(settings: Mapping[str, Any]) -> None:
    """Raises a ConfigError in every process if the processes differ in a setting, which it names.

    Args:
      settings: JSON values by name; every process calls this at the same point.
    """
    texts = gather(texts_of(settings))
    for name in sorted(set().union(*texts)):
        for process, other in enumerate(texts):
            here, there = texts[0].get(name, "missing"), other.get(name, "missing")
            if here != there:
                raise ConfigError(
                    f"{name} is {here} in process 0 and {there} in process {process}; "
                    "start all processes alike"
                )


def texts_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings as JSON texts, so that equal values compare equal, also NaN."""
    return {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}


def run_together(function: Callable[[], _Result]) -> _Result:
    """Runs a function in every process; a UserError in one process is raised in all."""
    results: list[_Result] = []
    error = None
    try:
        results.append(function())
    except UserError as caught:
        error = caught
    messages = gather(error and str(error))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise ConfigError(f"process {process}: {message}")
    return results[0]


def run_on_first(function: Callable[[], None]) -> None:
    """Runs a function in process 0 only; a UserError there is raised in all processes."""
    error = None
    if is_first():
        try:
            function()
        except UserError as caught:
            error = caught
    message = gather(error and str(error))[0]
    if message is not None:
        raise error or ConfigError(message)


def whole(tree: Any) -> Any:
    """Returns arrays that are spread over processes as whole arrays on the first local device."""
    if jax.process_count() == 1:
        return tree
    mesh = jax.tree.leaves(tree)[0].sharding.mesh
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = jax.jit(lambda x: x, out_shardings=replicated)(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
