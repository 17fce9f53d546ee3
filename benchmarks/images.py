"""Images per second, drawn pixel by pixel: tables 1, 2, 4 and 5 of Katharopoulos et al. 2020.

python -m benchmarks.images
python -m benchmarks.images --dataset=cifar10 --batches=1

The models of configs/papers/katharopoulos2020, in paper size unless --small, with initial weights.
`linear` and `stateful-softmax` decode with their state and are timed from the first pixel to the
last.  `softmax` and `lsh` compute all earlier pixels again for every pixel, as the paper's
baselines do: one pass is timed at a few lengths, and a quadratic through these times (least
squares) is summed over all lengths, since softmax attention costs a t^2 + b t + c.
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import nnx

from benchmarks import flag_checks, timing
from benchmarks.programs import Decoder
from configs.papers.katharopoulos2020 import cifar10, mnist
from linear_transformer.config import configuration
from linear_transformer.generate_images import PixelSampler
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig
from linear_transformer.ops.logistic_mixture import LEVELS

DATASETS = {"mnist": mnist, "cifar10": cifar10}
# Name of a row: the paper's method, and whether the method keeps a state.
METHODS = {
    "linear": ("linear", True),
    "stateful-softmax": ("softmax", True),
    "softmax": ("softmax", False),
    "lsh-1": ("lsh", False),
    "lsh-4": ("lsh", False),
}

_DATASET = flags.DEFINE_enum("dataset", "mnist", list(DATASETS), "Shape of the images.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Rows.")
_BATCHES = flags.DEFINE_list("batches", ["1"], "Images drawn side by side.")
_SMALL = flags.DEFINE_bool("small", False, "The `,small` twin instead of the paper's size.")
_LENGTHS = flags.DEFINE_integer("lengths", 4, "Lengths at which a whole pass is timed.", 3)
flag_checks.whole_numbers(_BATCHES)
flag_checks.among(METHODS, _METHODS)

COLUMNS = {
    "batch": "d",
    "method": "",
    "images/s": ".4f",
    "seconds an image": ",.2f",
    "x linear": ".2f",
    "how": "",
    "state MB": ",.2f",
    "compile s": ".1f",
}


def model_config(method: str) -> tuple[LanguageModelConfig, int]:
    """Returns the paper's model, and the number of pixels that it predicts."""
    variant = METHODS[method][0] + (",small" if _SMALL.value else "")
    config: ml_collections.ConfigDict = DATASETS[_DATASET.value].get_config(variant)
    if method.startswith("lsh"):
        config.model.mixers.lsh.rounds = int(method.removeprefix("lsh-"))
    model = configuration.build(LanguageModelConfig, config.model, "model", vocab_size=LEVELS)
    return model, config.data.sequence_length


def stateful(method: str, batch: int) -> tuple[dict[str, Callable], Callable, dict[str, Any]]:
    config, pixels = model_config(method)
    decoder = Decoder(config, batch, pixels, PixelSampler())
    facts = {"how": "all pixels", "state MB": decoder.state_bytes / 1e6}
    facts["compile s"] = decoder.compile_seconds
    return {method: decoder.from_start}, lambda timings: timings[method].median, facts


def recomputing(method: str, batch: int) -> tuple[dict[str, Callable], Callable, dict[str, Any]]:
    config, pixels = model_config(method)
    step = config.mixers["lsh"]["chunk_size"] if method.startswith("lsh") else 1
    lengths = np.linspace(pixels / step / 8, pixels / step, _LENGTHS.value).astype(int) * step
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    graphdef, parameters = nnx.split(model)
    parameters = nnx.to_pure_dict(parameters)

    def draw(parameters, tokens, key):
        outputs, _ = nnx.merge(graphdef, parameters)(tokens)
        return PixelSampler()(outputs[:, -1], key)

    runs, compile_seconds = {}, 0.0
    for length in lengths:
        arguments = (parameters, jnp.zeros((batch, length), jnp.int32), jax.random.key(0))
        program = timing.compile_ahead(draw, *arguments)
        compile_seconds += program.compile_seconds
        runs[f"{method} {length}"] = lambda p=program, a=arguments: jax.block_until_ready(
            p.call(*a)
        )

    def seconds(timings: dict[str, timing.Timing]) -> float:
        measured = [timings[name].median for name in runs]
        fit = np.polynomial.Polynomial.fit(lengths, measured, 2)
        return float(np.sum(fit(np.arange(1, pixels + 1))))

    how = f"sum over a quadratic through lengths {', '.join(map(str, lengths))}"
    return runs, seconds, {"how": how, "compile s": compile_seconds}


def compare(batch: int) -> list[dict[str, Any]]:
    candidates = {
        method: (stateful if METHODS[method][1] else recomputing)(method, batch)
        for method in _METHODS.value
    }
    runs = {name: run for found, _, _ in candidates.values() for name, run in found.items()}
    timings = timing.interleave(runs, timing.ROUNDS.value)
    rows = []
    for method, (_, seconds, facts) in candidates.items():
        total = seconds(timings)
        row = {"batch": batch, "method": method, "seconds an image": total / batch}
        rows.append(row | {"images/s": batch / total, **facts})
    linear = next((row["images/s"] for row in rows if row["method"] == "linear"), None)
    return [row | ({"x linear": linear / row["images/s"]} if linear else {}) for row in rows]


def main() -> None:
    rows = [row for batch in _BATCHES.value for row in compare(int(batch))]
    size = "small twin" if _SMALL.value else "paper size"
    timing.report(f"Drawing images of {_DATASET.value}, {size}", rows, COLUMNS)
    print("x linear: time of the row over that of linear")
    timing.save(f"images-{_DATASET.value}", {"images": rows}, dataset=_DATASET.value, size=size)


if __name__ == "__main__":
    timing.main(main)
