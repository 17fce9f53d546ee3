"""Table of Long Range Arena: runs of this project beside published accuracies.

    python -m linear_transformer.analysis.lra --runs='runs/lra/*'

The program reads `config.json` and `eval-test.json` of each folder (python eval.py --workdir=...
--split=test).  Without `eval-test.json` it uses the last validation record of `metrics.jsonl`, and
a note says so.  A folder has the name `<config>-<model>`, as train.py sets it; the image size is
not part of the model's name, so `pathfinder-linear,128` (Path-X) is in the row of
`pathfinder-linear`.  The output is Markdown.

The literature has three averages: Long Range Arena takes five tasks, without Path-X; S4 takes six
tasks, with 50 (chance) for a failed Path-X; HGRN2 takes six tasks, with 0 for a missing accuracy.
All three are computed from the cells, for published rows too.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from linear_transformer.analysis.curves import run_folders
from linear_transformer.analysis.published_lra import ROWS, TASKS
from linear_transformer.errors import ConfigError
from linear_transformer.runtime import program
from linear_transformer.training import config_file
from linear_transformer.training.metrics import read_metrics

NOT_RUN = "not run"
FAILED = "failed"
NOT_REPORTED = "-"
AVERAGES = ("mean of 5", "mean of 6 (failed Path-X = 50)", "mean of 6 (missing = 0)")

_CHANCE = 50.0  # accuracy of chance on Path-X, in percent

# Column of each `config.data.dataset`; "pathfinder" has two columns, by length.
_COLUMNS = {
    "listops": "ListOps",
    **dict.fromkeys(("imdb", "newsgroups", "spam"), "Text"),
    **dict.fromkeys(("aan", "passages"), "Retrieval"),
    **dict.fromkeys(("cifar10", "mnist", "fashion_mnist"), "Image"),
}
_PATHFINDERS = {1_024: "Pathfinder", 16_384: "Path-X"}
_NAMES = {"Text": "imdb", "Retrieval": "aan", "Image": "cifar10"}  # the benchmark's own data sets
_GENERATED = ("listops", "aan", "pathfinder")  # this project generates files of these formats too
_LENGTHS = {"ListOps": 2_000, "Text": 1_000, "Retrieval": 4_000, "Image": 1_024}  # minimum lengths

Cells = dict[str, tuple[float, list[str]]]  # percent and notes, by column


def column_of(config: Any, folder: epath.Path) -> str:
    """Returns the column of the table for a run.

    Raises:
      ConfigError: the table has no column for the run's task.
    """
    if config.get("task") != "sequence_classification":
        raise ConfigError(f"--runs: {folder} is a run of another task ({config.get('task')})")
    data = config.data
    if data.dataset == "pathfinder" and data.sequence_length in _PATHFINDERS:
        return _PATHFINDERS[data.sequence_length]
    if data.dataset not in _COLUMNS:
        raise ConfigError(
            f"--runs: {folder}: {data.dataset} of {data.sequence_length} tokens is not in the table"
        )
    return _COLUMNS[data.dataset]


def notes_on(data: Any, column: str) -> list[str]:
    """Returns the differences between a run's data and the benchmark's, from the run's config."""
    notes = []
    own = _NAMES.get(column, data.dataset)
    if data.dataset != own:
        notes.append(f"{data.dataset} instead of {own}")
    if data.dataset == "imdb" and not data.path:
        notes.append("imdb: its train half only, of which a part is the test split")
    if data.dataset in _GENERATED and data.get("path"):
        notes.append(f"{data.dataset}: of {data.path}, released files or generated ones")
    if data.dataset == "pathfinder" and data.difficulty != "hard":
        notes.append(f"pathfinder: {data.difficulty} images instead of hard")
    if data.sequence_length < _LENGTHS.get(column, 0):
        notes.append(f"{data.dataset}: {data.sequence_length:,} tokens of {_LENGTHS[column]:,}")
    return notes


def accuracy_of(folder: epath.Path) -> tuple[float, list[str]] | None:
    """Returns the accuracy in percent, and notes; None if the run has no evaluation.

    Raises:
      ConfigError: the file of the evaluation can't be read.
    """
    path = folder / "eval-test.json"
    if path.exists():
        try:
            return 100 * float(json.loads(path.read_text())["metrics"]["accuracy"]), []
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not an evaluation with an accuracy") from error
    records = [r for r in read_metrics(folder) if r["split"] == "validation" and "accuracy" in r]
    if not records:
        return None
    return 100 * records[-1]["accuracy"], [f"validation split, step {records[-1]['step']:,}"]


def read_runs(patterns: Sequence[str]) -> dict[str, Cells]:
    """Reads the cells of the table, by model.

    Raises:
      ConfigError: a folder has no run, its run has another task, or two runs fill the same cell.
    """
    models: dict[str, Cells] = {}
    folders: dict[tuple[str, str], epath.Path] = {}
    for folder in run_folders(patterns):
        config = config_file.read(folder)
        column, model = column_of(config, folder), model_of(folder.name)
        other = folders.setdefault((model, column), folder)
        if other is not folder:
            raise ConfigError(f"--runs: {other} and {folder} are both {column} of {model}")
        cells = models.setdefault(model, {})
        if found := accuracy_of(folder):
            percent, notes = found
            cells[column] = percent, notes_on(config.data, column) + notes
    return models


def model_of(name: str) -> str:
    """Returns the model of a folder: "linear,small" for "pathfinder-linear,128,small"."""
    config, _, variant = name.partition("-")
    return ",".join(part for part in variant.split(",") if not part.isdigit()) or config


def averages(accuracies: Sequence[float | None], *, failed: bool) -> list[float | None]:
    """Returns the three averages of AVERAGES; None if one of the first five tasks is missing.

    Args:
      accuracies: accuracies on TASKS; None if missing.
      failed: whether a missing Path-X stayed at chance; if not, its accuracy is unknown.
    """
    *five, path_x = accuracies
    measured = [accuracy for accuracy in five if accuracy is not None]
    if len(measured) < len(five):
        return [None] * len(AVERAGES)
    total = sum(measured)
    known = path_x is not None or failed
    with_chance = total + (_CHANCE if path_x is None else path_x)
    return [total / 5, with_chance / 6 if known else None, (total + (path_x or 0)) / 6]


def markdown(models: dict[str, Cells]) -> str:
    """Returns the table, with this project's runs first, and the notes below it."""
    notes: list[str] = []

    def mark(note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"[^{notes.index(note) + 1}]"

    rows = []
    for model, cells in models.items():
        texts = [
            f"{cells[task][0]:.2f}" + "".join(map(mark, cells[task][1]))
            if task in cells
            else NOT_RUN
            for task in TASKS
        ]
        values = [cells[task][0] if task in cells else None for task in TASKS]
        means = _texts(averages(values, failed=False), NOT_RUN)
        rows.append((model, *texts, *means, "this project"))
    for row in ROWS:
        texts = _texts(row.accuracies, FAILED if row.failed else NOT_REPORTED)
        means = _texts(averages(row.accuracies, failed=row.failed), NOT_REPORTED)
        rows.append((row.model, *texts, *means, mark(row.source)))
    head = ("model", *TASKS, *AVERAGES, "source")
    rule = ("---", *["---:"] * (len(head) - 2), "---")
    table = ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]
    return "\n".join([*table, "", *(f"[^{n}]: {note}" for n, note in enumerate(notes, 1))])


def _texts(values: Sequence[float | None], missing: str) -> list[str]:
    return [missing if value is None else f"{value:.2f}" for value in values]


def main() -> None:
    print(markdown(read_runs(flags.FLAGS.runs)))


if __name__ == "__main__":
    flags.DEFINE_multi_string("runs", None, "Folders of runs; may be given again.", required=True)
    program.run(main)
