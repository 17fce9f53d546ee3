"""Folders of runs as train.py and eval.py leave them, made without training."""

import json

from linear_transformer.config import configuration
from linear_transformer.reports.tables import Column, Experiment, Row, Table

CONFIG = "configs/papers/katharopoulos2020/copying.py"
STEPS = 40

TABLE = Table(
    title="Copying",
    source="Somebody, table 1",
    columns=(
        Column("accuracy", "%", "accuracy", better="higher", scale=100.0, digits=1, tolerance=1.0),
        Column("loss", "nats", "loss", split="validation", digits=2),
    ),
    rows=tuple(
        Row(
            name,
            published,
            paper=Experiment(f"{CONFIG}:{name}", {"num_steps": STEPS}),
            reduced=Experiment(f"{CONFIG}:{name},small", {"num_steps": STEPS}),
        )
        for name, published in (("linear", (98.0, None)), ("softmax", (99.0, "NaN")))
    ),
)


def write_run(folder, experiment, values=None, *, step=STEPS, test=None, **changes):
    """A run at a step.

    Args:
      values: of the validation split at that step.
      test: metrics of eval.py, for the test split.
      changes: of the config, `data__path` for `data.path`.
    """
    config = experiment.load()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configuration.plain(config)))
    records = [
        {"step": step // 2, "split": "train", "time": 1.7e9, "steps_per_second": 2.0},
        {"step": step // 2, "split": "validation", "time": 1.7e9, "loss": 9.0, "accuracy": 0.0},
        {"step": step, "split": "train", "time": 1.7e9, "steps_per_second": 4.0},
    ]
    if values:
        records.append({"step": step, "split": "validation", "time": 1.7e9, **values})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if test:
        record = {"step": step, "split": "test", "metrics": test}
        (folder / "eval-test.json").write_text(json.dumps(record))


def write_benchmark(path, *, size, date, devices="1 x cpu", **rows):
    """Images a second of `batch` 1 and 8 by method: linear=(3.0, 20.0)."""
    results = [
        {"batch": batch, "method": name.replace("_", "-"), "images/s": value, "how": "all pixels"}
        | {"seconds an image": 1 / value}
        for name, values in rows.items()
        for batch, value in zip((1, 8), values, strict=True)
    ]
    content = {"command": "python -m benchmarks.images", "date": date, "dataset": "mnist"}
    content |= {"size": size, "hardware": {"cpu": "a CPU", "cores": 2, "devices": devices}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"results": {"images": results}}))
