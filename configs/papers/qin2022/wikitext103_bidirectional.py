"""WikiText-103, masked language modelling: the bidirectional models of Qin et al. 2022.

    python train.py --config=configs/papers/qin2022/wikitext103_bidirectional.py:t2 \
        --config.data.path=FOLDER_WITH_wikitext-103-v1.zip --config.data.tokenizer=gpt2.json

The pre-training behind tables 1, 3, 5 and 8 to 12 (`ablations.py` has those as variants); published
perplexity of masked tokens: T2's layers 3.82 (table 8), 1+elu 4.98 (table 1).  RoBERTa base (Liu et
al. 2019): 12 layers of width 768, 12 heads, post-norm, a LayerNorm on the embeddings, learned
positions, 15 % of the tokens masked, 512 rows of 512 tokens a step for 50,000 steps; Adam(0.9,
0.98) with epsilon 1e-6 and decoupled weight decay 0.01, 3,000 steps of warm-up to 5e-4, then linear
to 0.  The output layer is the transposed embedding; RoBERTa's has one more dense layer before it.

Variants: :t1, :t2, :vanilla, :one_plus_elu; with `,small` (`:t2,small`) a pre-norm model of width
128 and 12 layers on Shakespeare in bytes, with the default optimizer, for 2 CPU cores.

The published setting needs accelerators (8 GPUs there); not run here.
"""

import ml_collections

from configs import default
from configs.papers.qin2022 import wikitext103_ar
from linear_transformer.errors import ConfigError

LAYERS = 12


def masked(choices: dict, small: bool) -> ml_collections.ConfigDict:
    """The experiment with these choices of `config.model`, every mixer of them bidirectional."""
    config = default.get_config()
    config.task = "masked_language_modelling"
    config.mask_rate = 0.15
    choices = dict(choices)
    mixers = {name: both_ways(name, options) for name, options in choices.pop("mixers").items()}
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


def both_ways(name: str, options: dict) -> dict:
    """The options of a mixer with direction="bidirectional", of a parallel one in its branches."""
    if name == "parallel":
        return {"branches": {n: both_ways(n, o) for n, o in options["branches"].items()}}
    return options | {"direction": "bidirectional"}


def parse(variant: str, variants: tuple[str, ...]) -> tuple[str, bool]:
    """("t2", True) for "t2,small".

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
