"""Speed of training, without the time of compilation, evaluations and checkpoints."""

import time

import ml_collections
from jax.sharding import Mesh

from linear_transformer.runtime import accelerators


class Speed:
    """Steps per second since the last log line.

    If the peak FLOPs of the devices are known, the report includes the model FLOPs utilization
    (MFU; Chowdhery et al. 2022, PaLM, appendix B): it counts three forward passes per step and no
    recomputation.

    Args:
      config: config of the run.
      flops: FLOPs of a forward pass of one batch.
      mesh: devices that train.
    """

    def __init__(self, config: ml_collections.ConfigDict, flops: int, mesh: Mesh):
        accelerator = accelerators.find(mesh.devices.flat[0].device_kind)
        self._peak = None if accelerator is None else mesh.size * accelerator.flops / (3 * flops)
        self._unit = "tokens" if "sequence_length" in config.data else "examples"
        self._per_step = config.data.batch_size * config.data.get("sequence_length", 1)
        self.restart()

    def restart(self, steps: int = 0) -> None:
        """Restarts the measurement; with `steps=-1` it does not count the next step."""
        self._started, self._steps = time.perf_counter(), steps

    def count(self) -> None:
        """Counts one step."""
        self._steps += 1

    def exclude(self, seconds: float) -> None:
        """Excludes time, in seconds, that was not spent on steps."""
        self._started += seconds

    def report(self, steps_to_go: int) -> tuple[dict[str, float], str]:
        """Returns rates by name, and text for the log; both are empty before the first step."""
        if self._steps <= 0:
            return {}, ""
        rate = self._steps / max(time.perf_counter() - self._started, 1e-9)
        numbers = {"steps_per_second": rate, f"{self._unit}_per_second": rate * self._per_step}
        text = f"  {rate * self._per_step:,.0f} {self._unit}/s"
        if self._peak is not None:
            numbers["mfu"] = rate / self._peak
            text += f"  MFU {100 * numbers['mfu']:.1f} %"
        return numbers, f"{text}  ETA {_duration(steps_to_go / rate)}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
