"""The scaling table of docs/scaling.md: upper bounds of speed for configs/lm/scale.py on TPUs.

    python -m benchmarks.scaling --mechanism=linear --sizes=125m,1b

Each row is a training step that libtpu compiled without a TPU.  One bound is arithmetic (matmuls at
the chip's bf16 peak), the other memory (the program's HBM traffic at the chip's bandwidth).
Networks and other costs are not included.
"""

from linear_transformer.runtime import accelerators

if __name__ == "__main__":
    accelerators.prepare_environment()

from absl import flags

from benchmarks import flag_checks
from configs import mechanisms
from configs.lm import scale
from linear_transformer.compile.ahead_of_time import Report, compile_training_step
from linear_transformer.runtime import program
from linear_transformer.runtime.accelerators import GIB

# For each size, a suitable slice of each version.
TOPOLOGIES = {
    "125m": ("v5e:2x2", "v6e:2x2", "v5p:2x2x1"),
    "350m": ("v5e:2x2", "v6e:2x2", "v5p:2x2x1"),
    "1b": ("v5e:4x4", "v6e:2x4", "v5p:2x2x2"),
    "7b": ("v5e:8x8", "v6e:4x4", "v5p:2x2x4"),
}
COLUMNS = (
    "size",
    "slice",
    "mesh",
    "HBM, GiB a chip",
    "TFLOPs a chip",
    "HBM traffic, GB a chip",
    "tokens/s a chip by FLOPs",
    "by HBM traffic",
    "bound",
    "compiled in",
)

_MECHANISM = flags.DEFINE_enum("mechanism", "linear", mechanisms.NAMES, "Mechanism to scale.")
_SIZES = flags.DEFINE_list("sizes", list(TOPOLOGIES), "Sizes of configs/lm/scale.py.")
flag_checks.among(TOPOLOGIES, _SIZES)


def row(size: str, topology: str, report: Report) -> list[str]:
    """Returns the cells of COLUMNS."""
    mesh = " x ".join(f"{n} {axis}" for axis, n in report.mesh.shape.items() if n > 1)
    start, seconds = [size, topology, mesh], f"{report.seconds:.0f} s"
    if not report.fits:
        needed = report.refusal or f"{report.hbm_bytes / GIB:.1f}"
        return [*start, f"does not fit: {needed}", *["-"] * (len(COLUMNS) - 5), seconds]
    a_chip = report.tokens / report.mesh.size
    by_flops, by_bytes = (a_chip / least for least in report.least_seconds)
    return [
        *start,
        f"{report.hbm_bytes / GIB:.1f} of {report.accelerator.memory / GIB:.0f}",
        f"{report.cost.flops / 1e12:.1f}",
        f"{report.cost.hbm_bytes / 1e9:.0f}",
        f"{by_flops:,.0f}",
        f"{by_bytes:,.0f}",
        f"{min(by_flops, by_bytes):,.0f}",
        seconds,
    ]


def main() -> None:
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for size in _SIZES.value:
        config = scale.get_config(f"{_MECHANISM.value},{size}")
        for topology in TOPOLOGIES[size]:
            report = compile_training_step(config, accelerators.describe_devices(topology))
            print(f"| {' | '.join(row(size, topology, report))} |", flush=True)


if __name__ == "__main__":
    program.run(main)
