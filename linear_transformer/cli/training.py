"""Program of train.py: its flags, and training."""

import ml_collections
from absl import flags

from linear_transformer.cli import command_line, compile_only, process
from linear_transformer.cli.command_line import CommandLine
from linear_transformer.runtime import compile_cache, distributed, program
from linear_transformer.training import config_file, run_folder
from linear_transformer.training.loop import train
from linear_transformer.training.stop import Interrupted
from linear_transformer.training.tracer import Tracer

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, local or gs://; by default runs/, the config's name and its overrides.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "START:STEPS, the steps whose XProf trace goes into the run's profile/."
)


def parse(argv: list[str]) -> tuple[ml_collections.ConfigDict, CommandLine]:
    process.show_in_help(__name__, compile_only.__name__)
    return command_line.parse(argv, default="configs/default.py")


def main(config: ml_collections.ConfigDict, line: CommandLine) -> None:
    if compile_only.REQUESTED.value:
        compile_only.report("train", config)
        return
    workdir = run_folder.path_of(_WORKDIR.value or _default_workdir(line))
    tracer = Tracer.parse(_PROFILE.value, workdir) if _PROFILE.value else None
    distributed.initialize()
    print(f"{'run:':12} {workdir}", flush=True)
    print(f"compiled programs: {compile_cache.enable()}", flush=True)
    try:
        train(config, workdir, tracer)
    except Interrupted:
        program.end(0)  # a compilation that was interrupted can crash the end of the interpreter


def _default_workdir(line: CommandLine) -> str:
    """Returns the default run folder; its name leaves out overrides that a resume may change."""
    return run_folder.default(
        line.path,
        {
            override.key: "true" if override.text is None else override.text
            for override in line.overrides
            if not config_file.may_change(override.key)
        },
    )
