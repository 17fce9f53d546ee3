"""Non-local module and efficient attention over image sizes, forward and backward.

python -m benchmarks.non_local
python -m benchmarks.non_local --plot=docs/non_local.png

The claim of Shen et al. 2021 (arXiv:1812.01243): time and memory of the quadratic module and of its
linear replacement, as the image grows.  A size is skipped if the compiled program would need more
than --memory_gb.
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from flax import nnx

from benchmarks import flag_checks, timing
from linear_transformer.nn.layers.efficient_attention_2d import EfficientAttention2D, NonLocal2D
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure

MODULES = {"non-local": NonLocal2D, "efficient": EfficientAttention2D}

_SIZES = flags.DEFINE_list("sizes", ["32", "64", "128", "256"], "Sides of square images, pixels.")
_CHANNELS = flags.DEFINE_integer("channels", 64, "Channels.", lower_bound=2)
_NORMALIZATION = flags.DEFINE_enum("normalization", "softmax", ["softmax", "scaling"], "Of both.")
_MEMORY_GB = flags.DEFINE_float("memory_gb", 8.0, "The most that a program may need.")
_PLOT = flags.DEFINE_string("plot", None, "Picture to write: time and memory over the size.")
flag_checks.whole_numbers(_SIZES)

COLUMNS = {
    "side": ",",
    "pixels": ",",
    "module": "",
    "ms": ",.1f",
    "min": ",.1f",
    "max": ",.1f",
    "temp MB": ",.1f",
    "speedup": ",.1f",
    "memory ratio": ",.1f",
    "note": "",
}


def program(module: type[nnx.Module], side: int) -> timing.Compiled:
    """Compiles the gradients of all parameters and of the image."""
    channels = _CHANNELS.value
    layer = module(channels, normalization=_NORMALIZATION.value, rngs=nnx.Rngs(0))
    graphdef, parameters = nnx.split(layer)
    image = jax.random.normal(jax.random.key(0), (1, side, side, channels))

    def loss(parameters, image):
        return jnp.mean(jnp.square(nnx.merge(graphdef, parameters)(image)))

    compiled = timing.compile_ahead(jax.grad(loss, argnums=(0, 1)), parameters, image)
    call = compiled.call
    return compiled._replace(call=lambda: jax.block_until_ready(call(parameters, image)))


def measure(side: int) -> list[dict[str, Any]]:
    programs = {name: program(module, side) for name, module in MODULES.items()}
    fits = {n: p for n, p in programs.items() if p.temp_bytes <= 1e9 * _MEMORY_GB.value}
    runs: dict[str, Callable[[], Any]] = {name: p.call for name, p in fits.items()}
    timings = timing.interleave(runs, timing.ROUNDS.value)
    rows = []
    for name, compiled in programs.items():
        row = {"side": side, "pixels": side * side, "module": name}
        row["temp MB"] = compiled.temp_bytes / 1e6
        if name in timings:
            row |= {"ms": 1e3 * timings[name].median}
            row |= {"min": 1e3 * timings[name].low, "max": 1e3 * timings[name].high}
        else:
            row["note"] = f"skipped: needs more than {_MEMORY_GB.value:g} GB"
        if name == "efficient":
            row["memory ratio"] = programs["non-local"].temp_bytes / compiled.temp_bytes
            if "non-local" in timings and "ms" in row:
                row["speedup"] = 1e3 * timings["non-local"].median / row["ms"]
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]], path: str) -> None:
    what = timing.title(f"attention over pixels, {_CHANNELS.value} channels")
    figure, (panels,) = new_figure(1, 2, size=(9, 3.6), title=what)
    labels = {"ms": "forward and backward, ms", "temp MB": "temporary memory, MB"}
    for panel, (column, label) in zip(panels, labels.items(), strict=True):
        for name in MODULES:
            points = [(r["side"], r[column]) for r in rows if r["module"] == name and column in r]
            panel.loglog(*zip(*points, strict=True), label=name)
        sides = sorted({row["side"] for row in rows})
        panel.set_xticks(sides, [f"{side}²" for side in sides])
        panel.minorticks_off()
        panel.set(xlabel="image, pixels", ylabel=label)
    limit = 1e3 * _MEMORY_GB.value
    panels[1].axhline(limit, color="grey", linestyle=":", marker="", label="limit")
    for panel in panels:
        label_lines(panel)
    save_figure(figure, epath.Path(path))
    print(f"wrote {path}")


def main() -> None:
    rows = [row for side in map(int, _SIZES.value) for row in measure(side)]
    title = f"Attention over pixels, {_CHANNELS.value} channels, {_NORMALIZATION.value}"
    timing.report(title, rows, COLUMNS)
    timing.save("non_local", {"non_local": rows})
    if _PLOT.value:
        plot(rows, _PLOT.value)


if __name__ == "__main__":
    timing.main(main)
