"""Every mechanism on the model of configs/lm/shakespeare.py: training, decoding, and state size.

python -m benchmarks.mechanisms
python -m benchmarks.mechanisms --names=linear,softmax,gla
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

from typing import Any

import jax
from absl import flags

from benchmarks import flag_checks, timing
from benchmarks.programs import Decoder, training_step
from configs import mechanisms
from configs.lm import shakespeare
from linear_transformer.inference.generation import Sampler
from linear_transformer.training.build import make_task

_NAMES = flags.DEFINE_list("names", list(mechanisms.NAMES), "Names of configs/mechanisms.py.")
_STEPS = flags.DEFINE_integer("steps", 256, "Tokens decoded, one sequence.")
_DATASET = flags.DEFINE_string("dataset", "shakespeare", "Text whose batches are trained on.")
flag_checks.among(mechanisms.NAMES, _NAMES)

COLUMNS = {
    "name": "",
    "parameters": ",",
    "training tokens/s": ",.0f",
    "ms": ",.0f",
    "min": ",.0f",
    "max": ",.0f",
    "temp MB": ",.0f",
    "compile s": ".1f",
    "decoding tokens/s": ",.0f",
    "us per token": ",.0f",
    "state bytes": ",",
}


def measure(name: str) -> dict[str, Any]:
    """Returns a row: the training step of train.py, and decoding with initial weights."""
    config = shakespeare.get_config(name)
    config.data.dataset = _DATASET.value
    step = training_step(config)
    decoder = Decoder(make_task(config).model_config, 1, _STEPS.value, Sampler())
    timings = timing.interleave(
        {"train": step.run, "decode": decoder.from_start}, timing.ROUNDS.value
    )
    train, decode = timings["train"], timings["decode"]
    return {
        "name": name,
        "parameters": sum(x.size for x in jax.tree.leaves(decoder.parameters)),
        "training tokens/s": config.data.batch_size * config.data.sequence_length / train.median,
        "ms": 1e3 * train.median,
        "min": 1e3 * train.low,
        "max": 1e3 * train.high,
        **step.facts,
        "decoding tokens/s": _STEPS.value / decode.median,
        "us per token": 1e6 * decode.median / _STEPS.value,
        "state bytes": decoder.state_bytes,
    }


def main() -> None:
    rows = []
    for name in _NAMES.value:
        rows.append(measure(name))
        jax.clear_caches()
    timing.report("8 x 256 tokens a training step; decoding one sequence", rows, COLUMNS)
    timing.save("mechanisms", {"mechanisms": rows})


if __name__ == "__main__":
    timing.main(main)
