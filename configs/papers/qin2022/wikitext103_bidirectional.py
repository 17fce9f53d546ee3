"""Masked language modelling on WikiText-103: the bidirectional models of Qin et al. 2022.

    python train.py --config=configs/papers/qin2022/wikitext103_bidirectional.py:t2 \
        --config.data.path=FOLDER_WITH_wikitext-103-v1.zip --config.data.tokenizer=gpt2.json

This is the pre-training of tables 1, 3, 5 and 8 to 12 (`ablations.py` has their variants).
Published perplexity of masked tokens: T2's layers 3.82 (table 8), 1+elu 4.98 (table 1).  The model
is RoBERTa base (Liu et al. 2019): 12 layers of width 768, 12 heads, post-norm, a LayerNorm on the
embeddings, and learned positions.  15 % of the tokens are masked; training has 512 rows of 512
tokens per step for 50,000 steps, with Adam(0.9, 0.98), epsilon 1e-6 and decoupled weight decay
0.01, 3,000 steps of warm-up to 5e-4, then linear decay to 0.  The output layer is the transposed
embedding; RoBERTa has one more dense layer before it.

Variants are :t1, :t2, :vanilla and :one_plus_elu; `,small` (`:t2,small`) is a pre-norm model of
width 128 and 12 layers on Shakespeare in bytes, with the default optimizer, for 2 CPU cores.

The published setting needs accelerators (8 GPUs in the paper); it was not run here.
"""

import ml_collections

from configs import default
from configs.papers.qin2022 import wikitext103_ar
from linear_transformer.errors import ConfigError

LAYERS = 12


def masked(choices: dict, small: bool) -> ml_collections.ConfigDict:
    """Returns the config with these entries of `config.model`, and all mixers bidirectional."""
    config = default.get_config()
    config.task = "masked_language_modelling"
    config.mask_rate = 0.15
    choices = dict(choices)
    mixers = {
        name: bidirectional_options(name, options)
        for name, options in choices.pop("mixers").items()
    }
    config.model.mixers = ml_collections.ConfigDict(mixers)
    config.model.update(
        positions="learned", max_positions=512, num_layers=LAYERS, tied=True, **choices
    )
    if small:
        config.data.dataset = "shakespeare"
        config.model.update(width=128, num_heads=4)
        return config
    config.num_steps = 50_000
    config.log_every = 100
    config.eval_every = 2_500
    config.checkpoint_every = 2_500
    config.data.update(
        dataset="wikitext103", packing="contiguous", batch_size=512, sequence_length=512
    )
    config.model.update(
        width=768, num_heads=12, norm_position="post", embedding_norm="layernorm", dropout=0.1
    )
    config.optimizer.update(
        name="adamw",
        learning_rate=5e-4,
        weight_decay=0.01,
        options={"b1": 0.9, "b2": 0.98, "eps": 1e-6},
        schedule="linear",
        final_fraction=0.0,
        warmup_steps=3_000,
        clip_norm=0.0,
    )
    return config


def bidirectional_options(name: str, options: dict) -> dict:
    """Returns options with direction="bidirectional"; for a parallel mixer, in its branches."""
    if name == "parallel":
        return {
            "branches": {n: bidirectional_options(n, o) for n, o in options["branches"].items()}
        }
    return options | {"direction": "bidirectional"}


def parse(variant: str, variants: tuple[str, ...]) -> tuple[str, bool]:
    """Parses a variant: ("t2", True) for "t2,small".

    Raises:
      ConfigError: there is no such variant.
    """
    name, *size = variant.split(",")
    if name not in variants or size not in ([], ["small"]):
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(variants)}, "
            "each alone or with ',small'"
        )
    return name, bool(size)


def get_config(variant: str = "t2") -> ml_collections.ConfigDict:
    name, small = parse(variant, wikitext103_ar.VARIANTS)
    return masked(wikitext103_ar.model(name), small)
