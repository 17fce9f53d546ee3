"""Metrics on their way out: JSON lines, TensorBoard, and a picture of the loss."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from linear_transformer.pictures import save_figure

LN2 = math.log(2)


class MetricWriter:
    """Writes `metrics.jsonl` and TensorBoard files of a run.

    After a resume the lines of steps that will be computed again are dropped, so that the file
    always holds one unbroken curve.
    """

    def __init__(self, workdir: epath.Path, resumed_step: int):
        self._path = workdir / "metrics.jsonl"
        self._workdir = workdir
        kept = [r for r in read_metrics(workdir) if r["step"] <= resumed_step]
        self._rewrite(kept)
        self._before = {(r["step"], r["split"]) for r in kept}
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        if (step, split) in self._before:  # the last evaluation, when a finished run starts again
            records = read_metrics(self._workdir)
            self._rewrite([r for r in records if (r["step"], r["split"]) != (step, split)])
        record = {"step": step, "split": split, "time": time.time(), **values}
        if "://" in str(self._path):  # an object of a bucket can't be appended to
            self._rewrite([*read_metrics(self._workdir), record])
        else:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        partial = self._path.with_suffix(".jsonl.part")
        partial.write_text("".join(json.dumps(record) + "\n" for record in records))
        partial.replace(self._path)

    def close(self) -> None:
        self._tensorboard.close()


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a line cut short by a killed process is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return list(_parse(path.read_text().splitlines()))


def _parse(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def plot_loss(workdir: epath.Path, metric: str) -> None:
    """Draws `metric` of every split against the step into `loss.png`."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    records = read_metrics(workdir)
    for split in dict.fromkeys(record["split"] for record in records):
        points = [(r["step"], r[metric]) for r in records if r["split"] == split and metric in r]
        if points:
            marker = "o" if split != "train" else None
            axes.plot(*zip(*points, strict=True), label=split, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, workdir / "loss.png")
