"""The program behind train.py: flags, and what they start."""

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from linear_transformer import compile_cache, compile_only, configuration, distributed, run_folder
from linear_transformer.cli import process
from linear_transformer.training.loop import train
from linear_transformer.training.tracer import Tracer

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, local or gs://; by default runs/, the config's name and its overrides.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "START:STEPS, the steps whose XProf trace goes into the run's profile/."
)


def run() -> None:
    process.show_in_help(__name__)
    configuration.run(main, default="configs/default.py")


def main(config: ml_collections.ConfigDict, config_path: str) -> None:
    if compile_only.REQUESTED.value:
        compile_only.report("training", config)
        return
    workdir = epath.Path(_WORKDIR.value or _default_workdir(config_path))
    tracer = Tracer.parse(_PROFILE.value, workdir) if _PROFILE.value else None
    distributed.initialize()
    print(f"{'run:':12} {workdir}", flush=True)
    print(f"compiled programs: {compile_cache.enable()}", flush=True)
    train(config, workdir, tracer)


def _default_workdir(config_path: str) -> str:
    """Overrides that a resumed run may change do not make another run."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return run_folder.default(
        config_path,
        {
            key: value
            for key, value in overrides.items()
            if key.partition(".")[0] not in configuration.RESUMABLE_KEYS
        },
    )
