"""Table of Long Range Arena: runs of this project beside published accuracies.

    python -m linear_transformer.analysis.lra --runs='runs/lra/*'

The program reads `config.json` and `eval-test.json` of each folder (python eval.py --workdir=...
--split=test).  Without `eval-test.json` of the last step it uses the last validation record of
`metrics.jsonl`, and a note says so.  A folder has the name `<config>-<model>`, as train.py sets it;
the image size is not part of the model's name, so `pathfinder-linear,128` (Path-X) is in the row of
`pathfinder-linear`.  The output is Markdown.

The literature has three averages: Long Range Arena takes five tasks, without Path-X; S4 takes six
tasks, with 50 (chance) for a failed Path-X; HGRN2 takes six tasks, with 0 for a missing accuracy.
All three are computed from the cells, for published rows too.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from linear_transformer.errors import ConfigError
from linear_transformer.reports import curves
from linear_transformer.reports.cells import Cell
from linear_transformer.reports.markdown import Footnotes, markdown_table
from linear_transformer.reports.published_lra import COLUMNS, FAILED, PUBLISHED, TASKS
from linear_transformer.reports.report import NOT_RUN, number
from linear_transformer.reports.runs import Run
from linear_transformer.reports.tables import Published, Row
from linear_transformer.runtime import program

AVERAGES = ("mean of 5", "mean of 6 (failed Path-X = 50)", "mean of 6 (missing = 0)")

_CHANCE = 50.0  # accuracy of chance on Path-X, in percent

# Task of each `config.data.dataset`; "pathfinder" is two tasks, by length.
_TASKS = {
    "listops": "ListOps",
    **dict.fromkeys(("imdb", "newsgroups", "spam"), "Text"),
    **dict.fromkeys(("aan", "passages"), "Retrieval"),
    **dict.fromkeys(("cifar10", "mnist", "fashion_mnist"), "Image"),
}
_PATHFINDERS = {1_024: "Pathfinder", 16_384: "Path-X"}
_GENERATED = ("listops", "aan", "pathfinder")  # this project generates files of these formats too
# The benchmark's own data set, and its minimum length.
_OWN = {"ListOps": ("listops", 2_000), "Text": ("imdb", 1_000)}
_OWN |= {"Retrieval": ("aan", 4_000), "Image": ("cifar10", 1_024)}

Cells = dict[str, Cell]  # by task


def task_of(run: Run) -> str:
    """Returns the task of the benchmark that a run has trained on.

    Raises:
      ConfigError: the table has no column for the run.
    """
    kind, dataset = run.config.get("task"), run.config.get("data.dataset", "")
    if kind != "sequence_classification":
        raise ConfigError(f"--runs: {run.folder} is a run of another task ({kind})")
    length = run.config["data.sequence_length"]
    task = _PATHFINDERS.get(length) if dataset == "pathfinder" else _TASKS.get(dataset)
    if task is None:
        raise ConfigError(f"--runs: {run.folder}: {dataset} of {length} tokens is not in the table")
    return task


def notes_on(run: Run, task: str) -> list[str]:
    """Returns the differences between a run's data and the benchmark's, from the run's config."""
    dataset, length = run.config["data.dataset"], run.config["data.sequence_length"]
    path, difficulty = run.config.get("data.path"), run.config.get("data.difficulty")
    own, least = _OWN.get(task, (dataset, 0))
    notes = []
    if dataset != own:
        notes.append(f"{dataset} instead of {own}")
    if dataset == "imdb" and not path:
        notes.append("imdb: its train half only, of which a part is the test split")
    if dataset in _GENERATED and path:
        notes.append(f"{dataset}: of {path}, released files or generated ones")
    if dataset == "pathfinder" and difficulty != "hard":
        notes.append(f"pathfinder: {difficulty} images instead of hard")
    if length < least:
        notes.append(f"{dataset}: {length:,} tokens of {least:,}")
    return notes


def cell_of(run: Run) -> Cell:
    """Returns the cell of a run; it has no value if the run has no evaluation.

    Raises:
      ConfigError: see `task_of`; or the file of the evaluation can't be read.
    """
    task = task_of(run)
    column, notes = COLUMNS[task], notes_on(run, task)
    cell = Cell(Row(model_of(run.folder.name), ()), column, None, runs=(run,))
    validation = [record for record in run.records if record["split"] == "validation"]
    if measured := run.value(column.split, "accuracy"):
        accuracy = measured[0]
    elif points := curves.by_step(validation, "accuracy"):
        step, accuracy = points[-1]
        notes.append(f"validation split, step {step:,}")
    else:
        return cell
    return dataclasses.replace(cell, values=(column.scale * accuracy,), sources=tuple(notes))


def read_runs(patterns: Sequence[str]) -> dict[str, Cells]:
    """Reads the cells of the table, by model.

    Raises:
      ConfigError: a folder has no run, its run has another task, or two runs fill the same cell.
    """
    models: dict[str, Cells] = {}
    for folder in curves.run_folders(patterns):
        cell = cell_of(Run.read(folder))
        model, task = cell.row.name, cell.column.name
        other = models.setdefault(model, {}).setdefault(task, cell)
        if other is not cell:
            raise ConfigError(
                f"--runs: {other.runs[0].folder} and {folder} are both {task} of {model}"
            )
    return models


def model_of(name: str) -> str:
    """Returns the model of a folder: "linear,small" for "pathfinder-linear,128,small"."""
    config, _, variant = name.partition("-")
    return ",".join(part for part in variant.split(",") if not part.isdigit()) or config


def averages(accuracies: Sequence[Published]) -> list[float | None]:
    """Returns the three averages of AVERAGES; None if they are unknown.

    Args:
      accuracies: accuracies on TASKS; None if unknown, FAILED if Path-X stayed at chance.
    """
    *five, path_x = accuracies
    if None in five:
        return [None] * len(AVERAGES)
    known = [value for value in accuracies if isinstance(value, int | float)]
    total = sum(known)
    with_chance = total + (_CHANCE if path_x == FAILED else 0)
    return [sum(known[:5]) / 5, None if path_x is None else with_chance / 6, total / 6]


def markdown(models: dict[str, Cells]) -> str:
    """Returns the table, with this project's runs first, and the notes below it."""
    notes, rows = Footnotes(), []
    for model, cells in models.items():
        texts = _texts([cells[t].value if t in cells else None for t in TASKS], NOT_RUN)
        for place, task in enumerate(TASKS):
            texts[place] += notes.marks(cells[task].sources if task in cells else ())
        rows.append((model, *texts, "this project"))
    for source, model, accuracies in PUBLISHED:
        rows.append((model, *_texts(accuracies, "-"), notes.marks([source])))
    table = markdown_table(("model", *TASKS, *AVERAGES, "source"), rows, "rrrrrrrrrl")
    return f"{table}\n\n{notes}"


def _texts(accuracies: Sequence[Published], missing: str) -> list[str]:
    """Returns the texts of accuracies and of their averages."""
    values = (*accuracies, *averages(accuracies))
    return [number(missing if value is None else value, 2) for value in values]


def main() -> None:
    print(markdown(read_runs(flags.FLAGS.runs)))


if __name__ == "__main__":
    flags.DEFINE_multi_string("runs", None, "Folders of runs; may be given again.", required=True)
    program.run(main)
