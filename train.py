"""Trains what a config describes.

python train.py                                            the quick start, on a CPU in minutes
python train.py --config=configs/lm/shakespeare.py:softmax --config.num_steps=500
python train.py --config=... --workdir=DIR                 again: goes on where it stopped
python train.py --distributed=auto --workdir=gs://...      on every worker of a TPU slice
python train.py --config=... --compile_only --topology=v5e:4x4     does it fit on these TPUs?
"""

from linear_transformer import compile_only
from linear_transformer.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    compile_only.prepare()

import pathlib

import ml_collections
from absl import flags
from etils import epath

from linear_transformer import configuration, distributed
from linear_transformer.training.loop import train
from linear_transformer.training.tracer import Tracer

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, local or gs://; by default runs/ and the config's name."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "START:STEPS, the steps whose XProf trace goes into the run's profile/."
)


def default_workdir(config_path: str) -> str:
    """`configs/lm/shakespeare.py:softmax` trains in `runs/lm/shakespeare-softmax`."""
    path, _, variant = config_path.partition(":")
    parts = list(pathlib.Path(path).with_suffix("").parts)
    if "configs" in parts:
        parts = parts[parts.index("configs") + 1 :]
    return str(pathlib.Path("runs", *parts)) + (f"-{variant}" if variant else "")


def main(config: ml_collections.ConfigDict, config_path: str) -> None:
    if compile_only.REQUESTED.value:
        compile_only.report("training", config)
        return
    workdir = epath.Path(_WORKDIR.value or default_workdir(config_path))
    tracer = Tracer.parse(_PROFILE.value, workdir) if _PROFILE.value else None
    distributed.initialize()
    train(config, workdir, tracer)


if __name__ == "__main__":
    configuration.run(main, default="configs/default.py")
