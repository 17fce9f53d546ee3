"""Output of metrics: JSON lines, TensorBoard, and a picture of the loss."""

import contextlib
import itertools
import json
import math
import os
import time
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from linear_transformer.runtime import files
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure

LN2 = math.log(2)
LOSS_FILE = "loss.png"  # in the folder of a run
_EVENTS: Any = event_pb2  # type checkers do not see the classes that protobuf makes at import


class MetricWriter:
    """Writer of `metrics.jsonl` and of the TensorBoard files of a run.

    After a resume, lines of steps that will be computed again, and damaged lines, move to the file
    `metrics.1.jsonl` (or the next free number). So `metrics.jsonl` always holds one unbroken curve,
    and no line is lost.
    """

    def __init__(self, workdir: epath.Path, resumed_step: int):
        self._path = workdir / "metrics.jsonl"
        lines = _lines(self._path)
        kept = [(line, r) for line, r in lines if r is not None and r["step"] <= resumed_step]
        self._before = {(r["step"], r["split"]): line for line, r in kept}
        others = {line for line, _ in lines} - {line for line, _ in kept}
        if others:
            self._move_aside(others)
        elif lines:  # the last line may lack its line break
            _write_lines(self._path, [line for line, _ in kept])
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: if its thread fails to write, the queue blocks the caller for ever.
        self._tensorboard = EventsWriter(str(folder / "events"))
        start = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
        self._add_event(resumed_step + 1, session_log=start)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Adds a record to both files.

        Raises:
          OSError: the record can't be written.
        """
        record = {"step": step, "split": split, "time": time.time(), **values}
        before = self._before.pop((step, split), None)
        if before is not None:  # the last evaluation, when a finished run starts again
            if _untimed(json.loads(before)) == _untimed(record):
                return
            self._move_aside({before})
        line = json.dumps(record) + "\n"
        if "://" in str(self._path):  # an object of a bucket can't be appended to
            self._path.write_text((self._path.read_text() if self._path.exists() else "") + line)
        else:
            with self._path.open("a") as file:
                file.write(line)
        for name, value in values.items():
            self._add_event(step, summary=summary.scalar(f"{split}/{name}", value))
        if "://" not in str(self._path):
            self._tensorboard.flush()

    def has(self, step: int, split: str, name: str = "step") -> bool:
        """Returns whether the file held a record with this value when it was opened."""
        line = self._before.get((step, split))
        return line is not None and name in json.loads(line)

    def flush(self) -> None:
        """Writes the buffered TensorBoard events; `write` does so itself except for buckets."""
        self._tensorboard.flush()

    def _add_event(self, step: int, **content: Any) -> None:
        self._tensorboard.write_event(_EVENTS.Event(wall_time=time.time(), step=step, **content))

    def _move_aside(self, lines: set[str]) -> None:
        """Moves lines to another file; a kill at any moment leaves them in one of the files."""
        numbers = (n for n in itertools.count(1) if not self._aside(n).exists())
        aside = self._aside(next(numbers))
        everything = [line for line, _ in _lines(self._path)]
        moved = [line for line in everything if line in lines]
        _write_lines(aside, moved)
        _write_lines(self._path, [line for line in everything if line not in lines])
        print(
            f"{'metrics:':12} lines of steps that come again, or damaged: {len(moved)}, moved to "
            f"{aside.name}",
            flush=True,
        )

    def _aside(self, number: int) -> epath.Path:
        return self._path.with_name(f"metrics.{number}.jsonl")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, `write` has raised the error already
            self._tensorboard.close()


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the records of `metrics.jsonl`; skips lines that a killed run left incomplete."""
    lines = _lines(workdir / "metrics.jsonl")
    return [record for _, record in lines if record is not None]


def _lines(path: epath.Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Returns each line with its record, or with None if the line is damaged."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return [(line, _parse(line)) for line in text.split("\n") if line]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = files.parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    whole = isinstance(record.get("step"), int) and isinstance(record.get("split"), str)
    return record if whole else None


def _untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "time"}


def _write_lines(path: epath.Path, lines: list[str]) -> None:
    """Writes lines atomically and flushes them to the disk."""
    partial = path.with_suffix(".jsonl.part")
    with partial.open("wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())
    partial.replace(path)


def plot_loss(workdir: epath.Path, metric: str) -> None:
    """Draws `metric` of every split against the step into the picture of a run."""
    figure, ((axes,),) = new_figure(size=(6, 4), title=workdir.name)
    records = read_metrics(workdir)
    for split in dict.fromkeys(record["split"] for record in records):
        points = [(r["step"], r[metric]) for r in records if r["split"] == split and metric in r]
        if points:
            marker = "" if split == "train" else "o"
            axes.plot(*zip(*points, strict=True), label=split, marker=marker)
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    label_lines(axes)
    save_figure(figure, workdir / LOSS_FILE)
