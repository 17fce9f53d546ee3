"""Experiments, columns and benchmarks of the tables of Katharopoulos et al. 2020."""

from linear_transformer.reports.tables import Benchmark, Column, Experiment

_ROUNDS = "model.mixers.lsh.rounds"
_CONFIGS = "configs/papers/katharopoulos2020"


def images(dataset: str, row: str, *, small: bool = False) -> Experiment:
    """Experiment of a row of tables 1, 2 and 4; `lsh-1` is the config `:lsh` with one round."""
    method, _, rounds = row.removeprefix("stateful-").partition("-")
    return Experiment(
        f"{_CONFIGS}/{dataset}.py:{method}{',small' if small else ''}",
        changes={_ROUNDS: 1} if rounds == "1" else {},
        files={"data.path": "cifar10"} if dataset == "cifar10" else {},
    )


def bits_per_dim(name: str, digits: int) -> Column:
    return Column(
        name, "bits/dim", metric="bits_per_dim", digits=digits, tolerance=2 * 10.0**-digits
    )


def images_per_second(dataset: str, name: str) -> Column:
    """Column of speeds; published on one P40 at unknown batch sizes, here at the fastest one."""
    return Column(name, "images/s", better="higher", benchmark=drawing(dataset, "images/s"))


def drawing(dataset: str, value: str, devices: str | None = None, **where: int) -> Benchmark:
    return Benchmark(
        command=f"python -m benchmarks.images --dataset={dataset}",
        results="images",
        candidate="method",
        value=value,
        facts={"dataset": dataset},
        where=where,
        devices=devices,
    )
