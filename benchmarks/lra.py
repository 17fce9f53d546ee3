"""Training steps per second and memory on bytes of text, by length: table 2 of Long Range Arena.

python -m benchmarks.lra
python -m benchmarks.lra --names=softmax,linear,performer --batch=2 --plot=build/benchmarks/lra.png

The model of configs/lra/text.py with the sizes of Long Range Arena's code (4 layers of width 256),
on 1,000 to 4,000 bytes of IMDb.  The paper has batches of 32 on 16 TPUs; the default here is 2.
"""

from linear_transformer.runtime.host_memory import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()

from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from benchmarks import flag_checks, timing
from benchmarks.programs import training_step
from configs.lra import text, variants
from configs.papers.lra2020 import table2
from linear_transformer.runtime.pictures import label_lines, new_figure, save_figure

# Published: steps per second, then gigabytes per device, at `table2.LENGTHS` bytes.
PUBLISHED = {variant: numbers for _, variant, *numbers in table2.PUBLISHED}

_NAMES = flags.DEFINE_list("names", list(PUBLISHED), "Variants of configs/lra/text.py.")
_LENGTHS = flags.DEFINE_list("lengths", list(map(str, table2.LENGTHS)), "Bytes.")
_BATCH = flags.DEFINE_integer("batch", 2, "Sequences a step.", lower_bound=1)
_SCALE = flags.DEFINE_enum("scale", None, variants.SCALES, "Another size than that of LRA's code.")
_PLOT = flags.DEFINE_string("plot", None, "Picture of time and memory against length.")
flag_checks.whole_numbers(_LENGTHS)
flag_checks.among(variants.NAMES, _NAMES)

COLUMNS = {
    "name": "",
    "length": ",",
    "steps/s": ".3f",
    "x softmax": ".2f",
    "published": ".1f",
    "x published": ".2f",
    "peak MB": ",.0f",
    "temp MB": ",.0f",
    "x softmax MB": ".2f",
    "published GB": ".2f",
    "compile s": ".1f",
}


def measure(name: str, length: int) -> dict[str, Any]:
    config = text.get_config(name + (f",{_SCALE.value}" if _SCALE.value else ""))
    config.data.batch_size, config.data.sequence_length = _BATCH.value, length
    config.model.scan_layers = False  # it only saves compile time
    step = training_step(config)
    seconds = timing.interleave({name: step.run}, timing.ROUNDS.value)[name].median
    peak = timing.peak_bytes(step.run)
    row = {"name": name, "length": length, "steps/s": 1 / seconds, **step.facts}
    row |= {"batch": _BATCH.value, "temp GB": step.facts["temp MB"] / 1e3}
    row["peak MB"] = None if peak is None else peak / 1e6
    if name in PUBLISHED and length in table2.LENGTHS:
        rates, gigabytes = PUBLISHED[name]
        number = table2.LENGTHS.index(length)
        row |= {"published": rates[number], "published GB": gigabytes[number]}
        row["x published"] = rates[number] / PUBLISHED["softmax"][0][number]
    return row


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds ratios to softmax attention at the same length, if softmax was measured."""
    softmax = {row["length"]: row for row in rows if row["name"] == "softmax"}
    for row in rows:
        if row["length"] in softmax:
            row["x softmax"] = row["steps/s"] / softmax[row["length"]]["steps/s"]
            row["x softmax MB"] = row["temp MB"] / softmax[row["length"]]["temp MB"]


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Power of the length with which the time of a step grows, by least squares."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [(row["length"], 1 / row["steps/s"]) for row in rows if row["name"] == name]
        if len(points) > 1:
            lengths, seconds = np.log(np.array(points)).T
            found[name] = float(np.polyfit(lengths, seconds, 1)[0])
    return found


def plot(rows: list[dict[str, Any]], path: str) -> None:
    what = timing.title(f"a training step on IMDb, batch {_BATCH.value}")
    figure, (axes,) = new_figure(1, 2, size=(9, 4), title=what)
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        lengths = [row["length"] for row in mine]
        axes[0].plot(lengths, [1 / row["steps/s"] for row in mine], label=name)
        axes[1].plot(lengths, [row["temp MB"] for row in mine], label=name)
    axes[0].set(xlabel="bytes", ylabel="seconds a step", ylim=(0, None))
    axes[1].set(xlabel="bytes", ylabel="XLA's temporaries [MB]", ylim=(0, None))
    for axis in axes:
        label_lines(axis)
    save_figure(figure, epath.Path(path))
    print(f"wrote {path}")


def main() -> None:
    rows = []
    for length in map(int, _LENGTHS.value):
        for name in _NAMES.value:
            rows.append(measure(name, length))
            jax.clear_caches()
    compare(rows)
    timing.report(f"A training step on IMDb, batch {_BATCH.value}", rows, COLUMNS)
    powers = exponents(rows)
    print("a step takes length to the power of", {n: round(p, 2) for n, p in powers.items()})
    print("x: over softmax at the same length")
    size = "paper size" if _BATCH.value == 32 and _SCALE.value is None else "small twin"
    timing.save("lra", {"lra": rows}, size=size, exponents=powers)
    if _PLOT.value:
        plot(rows, _PLOT.value)


if __name__ == "__main__":
    timing.main(main)
