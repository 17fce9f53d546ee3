"""How fast training is, without the time of compilation, evaluations and checkpoints."""

import time

import ml_collections
from jax.sharding import Mesh

from linear_transformer.runtime import accelerators


class Speed:
    """Steps per second since the last line of the log.

    Args:
      config: of the run.
      flops: of a forward pass of the batch.
      mesh: whose devices train. Where their peak is known, the model FLOPs utilization (MFU;
        Chowdhery et al. 2022, PaLM, appendix B) is reported: what the model needs, three forward
        passes, counts, and no recomputation.
    """

    def __init__(self, config: ml_collections.ConfigDict, flops: int, mesh: Mesh):
        accelerator = accelerators.find(mesh.devices.flat[0].device_kind)
        self._peak = None if accelerator is None else mesh.size * accelerator.flops / (3 * flops)
        self._unit = "tokens" if "sequence_length" in config.data else "examples"
        self._per_step = config.data.batch_size * config.data.get("sequence_length", 1)
        self.restart()

    def restart(self, steps: int = 0) -> None:
        """Counts from here on; of `steps` = -1 the next one is not counted."""
        self._started, self._steps = time.perf_counter(), steps

    def count(self) -> None:
        """A step is done."""
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on steps."""
        self._started += seconds

    def report(self, steps_to_go: int) -> tuple[dict[str, float], str]:
        """Numbers by name, and the end of a line; both empty where no step counts yet."""
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
