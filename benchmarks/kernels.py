"""TPU kernels compiled ahead of time, beside the chunk forms of XLA: temporaries in HBM.

python -m benchmarks.kernels --topology=v5e:1x1
python -m benchmarks.kernels --topology=all --lengths=8192 --forms=pallas

No TPU is needed, and none is used: the compiler of the package `libtpu` compiles for the named chip
and reports the memory of the program, but not its speed.
"""

from linear_transformer.runtime import accelerators

if __name__ == "__main__":
    accelerators.prepare_environment()

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import SingleDeviceSharding

from benchmarks import flag_checks
from linear_transformer.ops.additive import linear_attention
from linear_transformer.ops.decay import decayed_attention
from linear_transformer.ops.delta import FORMS, delta_attention
from linear_transformer.ops.feature_maps import elu_plus_one
from linear_transformer.runtime.program import run

# The smallest topology of each version.
TOPOLOGIES = ("v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1")

# Operators take q, k and v (B, T, H, K), and the listed further inputs: "vector" is log decays
# (B, T, H, K), "scalar" is log decays or steps (B, T, H).
OPERATORS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "additive": (
        lambda q, k, v, **o: linear_attention(q, k, v, feature_map=elu_plus_one, **o),
        (),
    ),
    "scalar decay": (decayed_attention, ("scalar",)),
    "vector decay": (decayed_attention, ("vector",)),
    "delta": (lambda q, k, v, b, **o: delta_attention(q, k, v, None, b, **o), ("scalar",)),
    "gated delta": (delta_attention, ("scalar", "scalar")),
    "kimi delta": (delta_attention, ("vector", "scalar")),
}


class Sizes(NamedTuple):
    """Sizes of the compiled program."""

    time: int
    batch: int = 1
    heads: int = 8
    width: int = 128  # of keys and values per head
    dtype: str = "bfloat16"  # of queries, keys and values
    packed: bool = False  # segment ids, and an initial state


def program(name: str, form: str, sizes: Sizes, backward: bool) -> Callable[..., Any]:
    """Makes the operator on arrays in the layout of projections, heads side by side: (B, T, H K).

    With `backward` the program returns output and state, and the gradients of all inputs for
    cotangents of both, as a training step needs them.
    """
    operator, _ = OPERATORS[name]

    def forward(inputs, packed):
        split = (sizes.batch, sizes.time, sizes.heads, -1)
        inputs = [x if x.shape[-1] == sizes.heads else x.reshape(split) for x in inputs]
        o, state = operator(*inputs, form=form, **packed)
        return o.reshape(*o.shape[:2], -1), state

    def both(inputs, packed, cotangents):
        outputs, pullback = jax.vjp(lambda inputs: forward(inputs, packed), inputs)
        return outputs, pullback(cotangents)

    return both if backward else forward


def arguments(name: str, sizes: Sizes, backward: bool, sharding: Any) -> tuple[Any, ...]:
    """Returns the shapes of the arguments of `program`."""
    batch, time, heads, width = sizes.batch, sizes.time, sizes.heads, sizes.width

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    vectors = array(batch, time, heads * width, dtype=jnp.dtype(sizes.dtype))
    gates = {"scalar": heads, "vector": heads * width}
    inputs = [vectors] * 3 + [array(batch, time, gates[kind]) for kind in OPERATORS[name][1]]
    normalizer = int(name == "additive")
    state = array(batch, heads, width, width + normalizer)
    packed = {}
    if sizes.packed:
        ids = array(batch, time, dtype=jnp.int32)
        packed = {"segment_ids_BT": ids, "initial_state": state}
    return (inputs, packed, (vectors, state)) if backward else (inputs, packed)


def measure(topology: str, name: str, form: str, sizes: Sizes, backward: bool) -> dict[str, Any]:
    """Compiles one program for one chip and reads the compiler's figures; MB are 10^6 bytes."""
    sharding = SingleDeviceSharding(accelerators.describe_devices(topology)[0])
    row = {"topology": topology, "operator": name, "form": form, "tokens": sizes.time}
    row["pass"] = "backward" if backward else "forward"
    lowered = jax.jit(program(name, form, sizes, backward)).lower(
        *arguments(name, sizes, backward, sharding)
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "memory space hbm" not in str(error):
            raise
        return row | {"fits": False}
    memory = compiled.memory_analysis()
    return row | {
        "fits": True,
        "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
        "arguments MB": memory.argument_size_in_bytes / 1e6,
        "outputs MB": memory.output_size_in_bytes / 1e6,
        "temporaries MB": memory.temp_size_in_bytes / 1e6,
    }


def table_row(rows: list[dict[str, Any]]) -> str:
    """Formats the forms of one program side by side."""
    cells = [str(rows[0][name]) for name in ("topology", "operator", "pass")]
    cells.append(f"{rows[0]['tokens']:,}")
    fitting = [row for row in rows if row["fits"]]
    ends = [f"{row['arguments MB'] + row['outputs MB']:,.1f}" for row in fitting[:1]] or [""]
    figures = [f"{row['temporaries MB']:,.1f}" if row["fits"] else "does not fit" for row in rows]
    return "| " + " | ".join(cells + ends + figures) + " |"


def _define_flags() -> None:
    flags.DEFINE_string(
        "topology", "v5e:1x1", f"VERSION:CHIPSxCHIPS, or all: {', '.join(TOPOLOGIES)}."
    )
    operators = flags.DEFINE_list("operators", list(OPERATORS), f"Among: {', '.join(OPERATORS)}.")
    forms = flags.DEFINE_list("forms", ["pallas", "chunk"], "Forms to compile.")
    passes = flags.DEFINE_list("passes", ["forward", "backward"], "forward, backward (both).")
    lengths = flags.DEFINE_list("lengths", ["8192", "65536", "524288"], "Tokens.")
    flag_checks.among(OPERATORS, operators)
    flag_checks.among(FORMS, forms)
    flag_checks.among(("forward", "backward"), passes)
    flag_checks.whole_numbers(lengths)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of queries, keys and values.")
    flags.DEFINE_integer("batch", 1, "Sequences.")
    flags.DEFINE_integer("heads", 8, "Heads.")
    flags.DEFINE_integer("width", 128, "Width of keys and values per head.")
    flags.DEFINE_bool("packed", False, "Segment ids, and an initial state.")


def main() -> None:
    given = flags.FLAGS
    chosen = TOPOLOGIES if given.topology == "all" else (given.topology,)
    titles = ["topology", "operator", "pass", "tokens", "inputs and outputs MB"]
    titles += [f"temporaries of {form} MB" for form in given.forms]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles), flush=True)
    for topology, name, kind, time in itertools.product(
        chosen, given.operators, given.passes, [int(n) for n in given.lengths]
    ):
        sizes = Sizes(time, given.batch, given.heads, given.width, given.dtype, given.packed)
        rows = [measure(topology, name, form, sizes, kind == "backward") for form in given.forms]
        print(table_row(rows), flush=True)


if __name__ == "__main__":
    _define_flags()
    run(main)
