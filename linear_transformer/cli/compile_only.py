"""Flag `--compile_only` of train.py and eval.py: does a config fit on these TPUs?

The exit status is 0 if it fits, 1 if not, and 2 with one line if the command is wrong.
"""

import sys
from typing import Any, Literal

from absl import flags

from linear_transformer.errors import ConfigError, RunError
from linear_transformer.runtime import accelerators

REQUESTED = flags.DEFINE_bool(
    "compile_only", False, "Compile for --topology and report what it needs; run nothing."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs of a slice: v5e:4x4, v5p:2x2x1, ...")
_PROGRAM = flags.DEFINE_enum(
    "program",
    None,
    ["train", "eval", "decode"],
    "Program of --compile_only: the training step, the forward pass of an evaluation batch, or a "
    "decoding step of one token a row; by default train, and with eval.py decode.",
)
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices, over a data-centre network.")


def requested() -> bool:
    """Returns whether the command line has the flag, before flags are parsed and JAX starts."""
    given = [argument.lstrip("-") for argument in sys.argv[1:] if argument.startswith("-")]
    return any(flag.lower() in ("compile_only", "compile_only=true") for flag in given)


def prepare() -> None:
    """Sets environment variables for the TPU compiler; call it before JAX is imported."""
    if requested():
        accelerators.prepare_environment()


def report(program: Literal["train", "decode"], config: Any) -> None:
    """Compiles a program and prints its memory, FLOPs, traffic and collectives.

    Args:
      program: program to compile if the command line has no --program.
      config: config of the run.

    Raises:
      UserError: flags, config or data have a mistake.
      RunError: the program does not fit.
    """
    from linear_transformer.compile import ahead_of_time

    if _TOPOLOGY.value is None:
        raise ConfigError("--compile_only needs --topology, such as --topology=v5e:4x4")
    devices = accelerators.describe_devices(_TOPOLOGY.value, _NUM_SLICES.value)
    compile_program = {
        "train": ahead_of_time.compile_training_step,
        "eval": ahead_of_time.compile_evaluation,
        "decode": ahead_of_time.compile_decoding_step,
    }[_PROGRAM.value or program]
    result = compile_program(config, devices)
    for name, fact in result.lines().items():
        print(f"{name + ':':14} {fact}", flush=True)
    if not result.fits:
        raise RunError(f"this does not fit on {_TOPOLOGY.value}")
