"""Long Range Arena's tasks as columns and as experiments, of configs/lra."""

from linear_transformer.analysis.published_lra import TASKS
from linear_transformer.papers.tables import Column, Experiment

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


def column(task: str) -> Column:
    return Column(
        task, "%", metric="accuracy", better="higher", scale=100.0, digits=2, tolerance=1.0
    )


def average(tasks: tuple[str, ...]) -> Column:
    return Column("average", "%", better="higher", digits=2, mean_of=tasks)


def paper(task: str, name: str) -> Experiment:
    """In Long Range Arena's setting, or in the mechanism's own: see configs/lra/variants.py."""
    return Experiment(
        f"{_CONFIGS[task]}:{name}{',128' if task == 'Path-X' else ''}",
        changes={"data.dataset": "cifar10"} if task == "Image" else {},
        files={"data.path": _FILES[task]},
    )


def reduced(task: str, name: str) -> Experiment | None:
    """2 layers of width 64, on a set that can be fetched where there is one; Path-X has no twin."""
    if task == "Path-X":
        return None
    return Experiment(
        f"{_CONFIGS[task]}:{name},small",
        changes={"data.dataset": "passages"} if task == "Retrieval" else {},
        files={"data.path": _FILES[task]} if task in ("ListOps", "Pathfinder") else {},
    )
