"""Programs of this project, compiled and ready to be timed: a training step and a decoding loop."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from benchmarks import timing
from linear_transformer.inference.generation import Draw, decode
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.training.build import Experiment, one_device


class Candidate(NamedTuple):
    """Row of a table: a function to time, and facts about it."""

    run: Callable[[], Any]
    flops_per_token: int | None = None
    facts: dict[str, Any] = {}  # noqa: RUF012


def training_step(config: ml_collections.ConfigDict) -> Candidate:
    """Compiles the step that train.py runs with this config, on a batch of its data."""
    built = Experiment(config, one_device())
    state = built.init_state()
    inputs = jax.device_put(next(iter(built.task.training_data(0, 1))))
    program = timing.compile_ahead(built.train_step(), state, inputs, donate_argnums=0)
    held = [state]

    def run():
        held[0], metrics = program.call(held[0], inputs)
        jax.block_until_ready((held[0], metrics))

    facts = {"temp MB": program.temp_bytes / 1e6, "compile s": program.compile_seconds}
    flops = None
    if isinstance(built.model, LanguageModel):
        flops = 3 * built.model.flops_per_token(config.data.sequence_length)
    return Candidate(run, flops, facts)


class Decoder:
    """Model and its state; each call decodes the next `steps` tokens from the last position."""

    def __init__(self, config: LanguageModelConfig, batch: int, steps: int, sampler: Draw):
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        graphdef, parameters = nnx.split(model)
        self.parameters = nnx.to_pure_dict(parameters)
        self.start = lambda: model.init_state(batch)
        self.state = self.start()
        self.token = jnp.zeros(batch, jnp.int32)
        self.key = jax.random.key(0)
        arguments = (self.parameters, self.state, self.token, self.key)
        began = time.perf_counter()
        self.program = decode.lower(graphdef, sampler, steps, *arguments).compile()
        self.compile_seconds = time.perf_counter() - began
        self.temp_bytes = self.program.memory_analysis().temp_size_in_bytes

    @property
    def state_bytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self.state))

    def __call__(self) -> None:
        self.state, tokens = self.program(self.parameters, self.state, self.token, self.key)
        self.token = tokens[:, -1].block_until_ready()
        self.key = jax.random.fold_in(self.key, 0)

    def from_start(self) -> None:
        self.state = self.start()
        self()

    def at(self, context: int) -> Callable[[], None]:
        """Makes a call that decodes after `context` tokens; their values do not change the cost."""

        def run():
            counts = {"length", "position"}
            self.state = jax.tree.map_with_path(
                lambda path, x: jnp.full_like(x, context) if path[-1].key in counts else x,
                self.state,
            )
            self()

        return run
