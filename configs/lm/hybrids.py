"""Hybrids at released sizes: `:qwen3_next`, `:kimi_linear`, `:samba`, `:griffin`.

    python train.py --config=configs/lm/hybrids.py:griffin \
        --config.data.dataset=local_text --config.data.path=FOLDER
    python train.py --config=configs/lm/hybrids.py:griffin --compile_only --topology=v5e:2x4

Result: not run; docs/scaling.md has what compiled.  Widths, heads and depth are those of the
smallest released model:

    qwen3_next    Qwen3.5-0.8B, a dense model with the layers of Qwen3-Next
                  (scripts/models/qwen3.5-0.8B.sh of THUDM/slime at f8879db, and the 16 heads of
                  128 of the delta rule in config.json of oopere/Qwen3.5-0.65B-Base-Rearchitected,
                  which is cut from it)
    kimi_linear   Kimi-Linear-48B-A3B (a copy of its config.json), with 3B active parameters
    samba         Samba 421M (lit_gpt/config.py of microsoft/Samba at ed3ed54)
    griffin       RecurrentGemma-2B (a copy of its config.json)

Not as released: tokens are bytes, unless config.data.tokenizer names a tokenizer.json, so there are
fewer parameters in embeddings.  Rotary frequencies have the base 10,000, Qwen3.5's 10,000,000.
Kimi Linear's softmax has heads of 128 features, and not the latent keys and values of MLA; its
experts are one dense feed-forward of the width that is active per token, 9 x 1,024, which its first
layer has too.  Training is that of configs/lm/scale.py, not that of the papers.
"""

import ml_collections

from configs.lm import scale
from linear_transformer.errors import ConfigError

# Entries of config.model, options of mixers, the size of configs/lm/scale.py that trains alike, and
# devices along "fsdp".
SIZES = {
    "qwen3_next": (
        {"width": 1024, "num_layers": 24, "num_heads": 16, "feed_forward_width": 3584},
        {
            "gated_delta_net": {"key_width": 128, "value_width": 128},
            "softmax": {"query_heads": 8, "key_value_heads": 2, "key_width": 256},
        },
        "1b",
        4,
    ),
    "kimi_linear": (
        {
            "width": 2304,
            "num_layers": 27,
            "num_heads": 32,
            "feed_forward_width": 9216,
            "pattern": ("kda", "kda", "kda", "softmax") * 6 + ("kda", "kda", "softmax"),
        },
        {"kda": {"key_width": 128, "value_width": 128}, "softmax": {"key_width": 128}},
        "1b",
        8,
    ),
    "samba": (
        {"width": 1536, "num_layers": 12, "num_heads": 12, "feed_forward_width": 4096},
        {"softmax": {"window": 2048}},
        "350m",
        4,
    ),
    "griffin": (
        {"width": 2560, "num_layers": 26, "num_heads": 10, "feed_forward_width": 7680},
        {"softmax": {"window": 2048, "rotary_fraction": 0.5}},
        "1b",
        8,
    ),
}


def get_config(variant: str = "qwen3_next") -> ml_collections.ConfigDict:
    if variant not in SIZES:
        raise ConfigError(f"--config=...:{variant}: the variants are {', '.join(SIZES)}")
    model, mixers, size, fsdp = SIZES[variant]
    config = scale.get_config(f"{variant},{size}")
    config.mesh.fsdp = fsdp
    config.model.update(model)
    for name, options in mixers.items():
        config.model.mixers[name].update(options)
    return config
