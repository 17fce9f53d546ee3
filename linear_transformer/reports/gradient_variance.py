"""Variation of gradients between steps for several mixers: table 2 of Qin et al. 2022.

    python -m linear_transformer.analysis.gradient_variance
    python -m linear_transformer.analysis.gradient_variance --steps=500 --config.data.batch_size=8

The program trains the config (configs/default.py:katharopoulos) once for each row of the table.
Only the mixer differs; optimizer, data and seed are the same.  It prints two measures of the
gradients g_t of the mixers' parameters over the steps t after a warm-up; the paper does not say
which measure it used.  It also writes the results to build/benchmarks/gradient_variance.json.

- norm: std_t(|g_t|_2) / mean_t(|g_t|_2) of the norm of the whole gradient.
- entries: std_t(|g_ti|) / mean_t(|g_ti|) for each entry i, then the mean over the entries.  For
  Gaussian noise with mean 0 this value is sqrt(pi/2 - 1) = 0.76.

The numbers of the paper are after 50,000 steps on WikiText-103.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

from linear_transformer.cli import command_line
from linear_transformer.cli.command_line import CommandLine
from linear_transformer.reports import report
from linear_transformer.reports.tables import load_table
from linear_transformer.runtime import environment, program
from linear_transformer.training import experiment
from linear_transformer.training.build import Experiment, one_device

_STEPS = flags.DEFINE_integer("steps", 300, "Steps to measure.", lower_bound=2)
_WARMUP = flags.DEFINE_integer("warmup", 100, "Steps before the first one measured.", lower_bound=0)

# Mixer of each row of the table, by `Row.candidate`.
MIXERS = {
    "1+elu": "linear",
    "Performer": "performer",
    "softmax": "softmax",
    "NormAttention": "norm",
}


class Moments(NamedTuple):
    """Sums over steps of the gradient norm, of the absolute entries, and of their squares."""

    count: Float[Array, ""]
    norm: Float[Array, ""]
    norm_squared: Float[Array, ""]
    entries: Any
    entries_squared: Any

    @classmethod
    def zeros(cls, gradients: Any) -> "Moments":
        zero = jnp.zeros(())
        return cls(zero, zero, zero, *(jax.tree.map(jnp.zeros_like, gradients) for _ in range(2)))

    def add(self, gradients: Any) -> "Moments":
        norm = optax.tree.norm(gradients)
        return Moments(
            self.count + 1,
            self.norm + norm,
            self.norm_squared + norm**2,
            jax.tree.map(lambda s, g: s + jnp.abs(g), self.entries, gradients),
            jax.tree.map(lambda s, g: s + g**2, self.entries_squared, gradients),
        )

    def relative_deviations(self) -> tuple[float, float]:
        """Returns the measures (norm, entries), without entries whose gradient is always 0."""
        norm = _relative(self.norm, self.norm_squared, self.count)
        ratios = jax.tree.map(
            lambda s, s2: _relative(s, s2, self.count), self.entries, self.entries_squared
        )
        ratios = jnp.concatenate([x.ravel() for x in jax.tree.leaves(ratios)])
        return float(norm), float(jnp.nanmean(ratios))


def _relative(total: Array, total_squared: Array, count: Array) -> Array:
    """Returns the standard deviation divided by the mean; NaN where the mean is 0."""
    mean = total / count
    variance = jnp.maximum(total_squared / count - mean**2, 0)
    return jnp.where(mean > 0, jnp.sqrt(variance) / mean, jnp.nan)


def _mixers(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the mixers; the rest of the model is the same for all rows."""
    blocks = parameters["stack"]["blocks"]
    return {str(layer): block["mixer"] for layer, block in blocks.items()}


def measure(
    config: ml_collections.ConfigDict, mixer: str, steps: int, warmup: int
) -> tuple[float, float]:
    """Trains with one mixer in all layers; returns the measures (norm, entries)."""
    config = experiment.resolve(config)  # the rest of the model is the same for all mixers
    config.model.pattern = (mixer,)
    config.model.mixers = ml_collections.ConfigDict({mixer: {}})
    config.num_steps = warmup + steps
    built = Experiment(config, one_device())
    state = built.init_state()
    moments = Moments.zeros(_mixers(state.parameters))
    step = _make_step(built, state.statistics)
    parameters, optimizer_state = state.parameters, state.optimizer
    batches = iter(built.task.training_data(0, 1))
    for number in range(warmup + steps):
        parameters, optimizer_state, moments = step(
            parameters, optimizer_state, moments, next(batches), number, number >= warmup
        )
    return moments.relative_deviations()


def _make_step(built: Experiment, statistics: Any):
    def loss(parameters, batch, key):
        model = nnx.merge(built.graphdef, parameters, statistics)
        total, count = built.task.loss(model, batch, key)["loss"]
        return total / jnp.maximum(count, 1)

    @jax.jit
    def step(parameters, optimizer_state, moments, batch, number, measured):
        key = jax.random.fold_in(jax.random.key(built.config.seed), number)
        gradients = jax.grad(loss)(parameters, batch, key)
        added = moments.add(_mixers(gradients))
        moments = jax.tree.map(lambda new, old: jnp.where(measured, new, old), added, moments)
        updates, optimizer_state = built.optimizer.update(gradients, optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), optimizer_state, moments

    return step


def main(config: ml_collections.ConfigDict, line: CommandLine) -> None:
    del line
    table = Table(title=f"relative standard deviation of gradients over {_STEPS.value} steps")
    rows = []
    for column in ("attention", "published", "norm", "entries"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for row in load_table("qin2022/table2").rows:
        name = str(row.candidate)
        measured = measure(config, MIXERS[name], _STEPS.value, _WARMUP.value)
        cells = [f"{value:.2f}" if math.isfinite(value) else "-" for value in measured]
        print(f"{name}: norm {cells[0]}, entries {cells[1]}", flush=True)
        table.add_row(name, report.number(row.published[0], 2), *cells)
        rows.append({"attention": name, "norm": measured[0], "entries": measured[1]})
    Console().print(table)
    path = epath.Path("build/benchmarks/gradient_variance.json")
    environment.save(path, size="small twin", results={"gradient_variance": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    parse = functools.partial(command_line.parse, default="configs/default.py:katharopoulos")
    program.run(main, parse)
