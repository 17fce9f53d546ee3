"""Work of every mechanism on a TPU, from the compiler: FLOPs and HBM traffic of training.

python -m benchmarks.mechanisms_on_tpu --topology=v5e:2x2
python -m benchmarks.mechanisms_on_tpu --names=linear,softmax,gla

libtpu compiles the training step of configs/lm/shakespeare.py for one chip; no TPU is needed, and
nothing runs.  FLOPs are those of matrix products; loops count as often as they run.
"""

from linear_transformer.runtime import accelerators

if __name__ == "__main__":
    accelerators.prepare_environment()

from typing import Any

import jax
from absl import flags

from benchmarks import flag_checks, timing
from configs import mechanisms
from configs.lm import shakespeare
from linear_transformer.compile.ahead_of_time import compile_training_step
from linear_transformer.types import Device

_NAMES = flags.DEFINE_list("names", list(mechanisms.NAMES), "Names of configs/mechanisms.py.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU slice; one of its chips is used.")
_DATASET = flags.DEFINE_string("dataset", "shakespeare", "Text whose batches are trained on.")
flag_checks.among(mechanisms.NAMES, _NAMES)

COLUMNS = {
    "name": "",
    "FLOPs/token": ",.0f",
    "HBM bytes/token": ",.0f",
    "HBM MB": ",.0f",
    "compile s": ".1f",
}


def measure(name: str, chip: Device) -> dict[str, Any]:
    """Returns a row: the training step of train.py, compiled for one chip."""
    config = shakespeare.get_config(name)
    config.data.dataset = _DATASET.value
    report = compile_training_step(config, [chip])
    if report.cost is None:
        raise SystemExit(f"error: {name}: {report.refusal}")
    return {
        "name": name,
        "FLOPs/token": report.cost.flops / report.tokens,
        "HBM bytes/token": report.cost.hbm_bytes / report.tokens,
        "HBM MB": report.hbm_bytes / 1e6,
        "compile s": report.seconds,
    }


def main() -> None:
    chip = accelerators.describe_devices(_TOPOLOGY.value)[0]
    rows = []
    for name in _NAMES.value:
        rows.append(measure(name, chip))
        timing.save("mechanisms_on_tpu", {"mechanisms": rows})  # a stopped run keeps its rows
        jax.clear_caches()
    timing.report(f"8 x 256 tokens a training step on one chip of {_TOPOLOGY.value}", rows, COLUMNS)


if __name__ == "__main__":
    timing.main(main)
