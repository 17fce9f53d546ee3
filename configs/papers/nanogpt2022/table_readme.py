"""Loss of nanoGPT's README on Shakespeare's characters, CPU size; see `shakespeare_char.py`."""

import math

from linear_transformer.reports.tables import Column, Experiment, Row, Table

_HALVES = {"first half": "validation", "second half": "test"}

TABLE = Table(
    title="Shakespeare's characters on a CPU",
    source="Karpathy 2022, README of nanoGPT (https://github.com/karpathy/nanoGPT)",
    note="The published loss is an estimate from 20 batches of the last tenth of the text; here "
    "the whole tenth counts, in two halves.  For softmax attention here, such estimates have a "
    "standard deviation of 0.012, and the losses of three seeds differ by 0.01.  Other mechanisms "
    "have the same settings, tuned for softmax attention.",
    columns=(
        *(
            Column(
                f"loss, {half}",
                "nats",
                metric="bits_per_byte",
                split=split,
                scale=math.log(2),
                digits=3,
            )
            for half, split in _HALVES.items()
        ),
        Column(
            "loss",
            "nats",
            mean_of=tuple(f"loss, {half}" for half in _HALVES),
            digits=3,
            tolerance=0.02,
        ),
    ),
    rows=tuple(
        Row(
            name,
            (None, None, 1.88 if name == "softmax" else None),
            paper=Experiment(
                f"configs/papers/nanogpt2022/shakespeare_char.py:{name}",
                files={"data.path": "tinyshakespeare"},
            ),
        )
        for name in (
            "softmax",
            "linear",
            "retnet",
            "gla",
            "hgrn2",
            "mamba2",
            "delta_net",
            "gated_delta_net",
            "kda",
        )
    ),
)
