"""Experiments of Long Range Arena with configs/lra, and their average."""

from linear_transformer.reports.published_lra import TASKS
from linear_transformer.reports.tables import Column, Experiment

_CONFIGS = {task: f"configs/lra/{task.lower()}.py" for task in TASKS[:5]}
_CONFIGS["Path-X"] = _CONFIGS["Pathfinder"]
_FILES = {
    "ListOps": "listops",
    "Text": "imdb",
    "Retrieval": "aan",
    "Image": "cifar10",
    "Pathfinder": "pathfinder32",
    "Path-X": "pathfinder128",
}


def average(tasks: tuple[str, ...]) -> Column:
    return Column("average", "%", better="higher", digits=2, mean_of=tasks)


def paper(task: str, name: str) -> Experiment:
    """Experiment in Long Range Arena's or the mechanism's setting; see configs/lra/variants.py."""
    return Experiment(
        f"{_CONFIGS[task]}:{name}{',128' if task == 'Path-X' else ''}",
        changes={"data.dataset": "cifar10"} if task == "Image" else {},
        files={"data.path": _FILES[task]},
    )


def reduced(task: str, name: str) -> Experiment | None:
    """Twin with 2 layers of width 64, on data that can be fetched if possible; None for Path-X."""
    if task == "Path-X":
        return None
    return Experiment(
        f"{_CONFIGS[task]}:{name},small",
        changes={"data.dataset": "passages"} if task == "Retrieval" else {},
        files={"data.path": _FILES[task]} if task in ("ListOps", "Pathfinder") else {},
    )
