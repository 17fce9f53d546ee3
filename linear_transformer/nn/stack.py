"""Stack of blocks in a loop, or in a scan, which is traced once and compiles fast at any depth."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.core import Tracer

from linear_transformer.errors import ConfigError
from linear_transformer.nn.block import Block, BlockInputs
from linear_transformer.nn.layers.linear import flops_of_weights
from linear_transformer.nn.mixers.base import MixerState
from linear_transformer.nn.split import gathered
from linear_transformer.types import Activations, PRNGKey

BLOCKS = "blocks"  # in the paths of a stack's parameters, and in no other path

# Up to this many repetitions a scan without recomputation is unrolled: steps are faster, and
# compilation is still short.  In a loop, the compiler cannot undo a recomputation.
UNROLLED = 8

# What the backward pass keeps of a block: everything, nothing, or the results of matmuls.
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """Stack of blocks in a repeated layer pattern.

    Attributes:
      period: blocks per repetition of the layer pattern.
      scan: whether repetitions are steps of a scan; parameters then have repetitions as their first
        axis.
      shared: whether all repetitions are steps of a scan with the same parameters, which have no
        axis of repetitions (Lan et al. 2020, ALBERT, arXiv:1909.11942).
      remat: name in REMAT_POLICIES.
    """

    def __init__(
        self,
        make_block: Callable[[int, nnx.Rngs], Block],
        num_layers: int,
        *,
        period: int,
        scan: bool,
        shared: bool = False,
        remat: str,
        rngs: nnx.Rngs,
    ):
        if (scan or shared) and num_layers % period:
            raise ValueError(
                f"scan_layers needs num_layers ({num_layers}) to be a multiple of the "
                f"pattern's length ({period})"
            )
        self.scan = scan or shared
        self.shared = shared
        self.remat = remat
        blocks = [make_block(layer, rngs) for layer in range(period if shared else num_layers)]
        residual = [block.mixer.value_residual for block in blocks]
        if any(residual) and not residual[0]:
            raise ConfigError("config.model.pattern: value_residual needs a first layer with it")
        if self.scan and not shared:
            repetitions = [nnx.List(blocks[i : i + period]) for i in range(0, num_layers, period)]
            states = [nnx.state(group) for group in repetitions]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            self.blocks = nnx.merge(nnx.graphdef(repetitions[0]), stacked)
        else:
            self.blocks = nnx.List(blocks)
        self.repetitions = num_layers // period if self.scan else 1

    def flops_beyond_weights(self, context: int) -> int:
        """FLOPs of one token besides its product with each weight; see `Mixer.flops_per_token`."""
        blocks = sum(block.flops_beyond_weights(context) for block in self.blocks)
        again = (self.repetitions - 1) * flops_of_weights(self) if self.shared else 0
        return self.repetitions * blocks + again

    def init_state(self, batch_size: int) -> MixerState:
        """Returns the state of each layer."""
        repetitions = range(self.repetitions)
        return [block.mixer.init_state(batch_size) for _ in repetitions for block in self.blocks]

    def separate(self) -> None:
        """Replaces a scan by blocks of their own for every repetition."""
        if not self.scan:
            return
        blocks = []
        for repetition in range(self.repetitions):
            graphdef, state = nnx.split(self.blocks)
            own = state if self.shared else jax.tree.map(lambda x, r=repetition: x[r], state)
            blocks.extend(nnx.merge(graphdef, own))
        self.blocks = nnx.List(blocks)
        self.scan, self.shared, self.repetitions = False, False, 1

    def __call__(
        self,
        x_BTD: Activations,
        states: MixerState | None = None,
        *,
        dropout_key: PRNGKey | None = None,
        **inputs: Unpack[BlockInputs],
    ) -> tuple[Activations, MixerState | None]:
        def apply(graphdef, parameters, x_BTD, state, key):
            block = nnx.merge(graphdef, gathered(parameters))
            x_BTD, state = block(x_BTD, state, dropout_key=key, first_BTI=first_BTI, **inputs)
            return x_BTD, state, nnx.to_pure_dict(nnx.state(block, nnx.BatchStat))

        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            apply = jax.checkpoint(apply, policy=policy, static_argnums=(0,))
        if isinstance(x_BTD, Tracer):
            apply = jax.jit(apply, static_argnums=(0,))  # equal blocks are traced once

        def run(parameters, x_BTD, states, keys):
            new_states, statistics = [], []
            for i, (graphdef, parameter) in enumerate(zip(graphdefs, parameters, strict=True)):
                state = None if states is None else states[i]
                key = None if keys is None else keys[i]
                x_BTD, state, of_block = apply(graphdef, parameter, x_BTD, state, key)
                new_states.append(state)
                statistics.append(of_block)
            return x_BTD, (None if states is None else new_states, statistics)

        graphdefs, parameters = zip(*[nnx.split(block) for block in self.blocks], strict=True)
        first_BTI = None
        if self.blocks[0].mixer.value_residual:
            # Every block takes these values, the first one too, so a scan carries no more than x.
            state = None if states is None else states[0]
            first = parameters[0]
            if self.scan and not self.shared:
                first = jax.tree.map(lambda x: x[0], first)
            first_BTI = nnx.merge(graphdefs[0], gathered(first)).first_values(
                x_BTD,
                state,
                training=dropout_key is not None,
                segment_ids=inputs.get("segment_ids"),
            )
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, (self.repetitions, len(graphdefs)))

        def repetition(x_BTD, scanned):
            own, states, keys = scanned
            return run(parameters if self.shared else own, x_BTD, states, keys)

        if self.scan:
            if states is not None:
                period = len(graphdefs)
                groups = [states[i : i + period] for i in range(0, len(states), period)]
                states = jax.tree.map(lambda *x: jnp.stack(x), *groups)
            scanned = None if self.shared else parameters, states, keys
            unroll = self.repetitions <= UNROLLED and self.remat == "none"
            x_BTD, (states, statistics) = lax.scan(
                repetition, x_BTD, scanned, length=self.repetitions, unroll=unroll
            )
            if states is not None:
                each = range(self.repetitions)
                groups = [jax.tree.map(lambda x, r=r: x[r], states) for r in each]
                states = [state for group in groups for state in group]
        else:
            keys = None if keys is None else keys[0]
            x_BTD, (states, statistics) = run(parameters, x_BTD, states, keys)
        if dropout_key is not None:
            for block, of_block in zip(self.blocks, statistics, strict=True):
                nnx.update(block, of_block)
        return x_BTD, states


def separate_layers(graphdef: nnx.GraphDef, parameters: Any) -> tuple[nnx.GraphDef, Any]:
    """Returns a model whose stacks have no scan, for a loop over tokens.

    In such a loop, XLA copies the parameters and the state of each repetition for each token.
    """
    model = nnx.merge(graphdef, parameters)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            module.separate()
    return nnx.split(model)
