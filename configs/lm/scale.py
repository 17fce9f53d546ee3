"""Language models of 125M to 7B parameters on TPU slices: `:linear,125m`, `:gla,7b`, ...

    python train.py --config=configs/lm/scale.py:linear,1b \
        --config.data.dataset=local_text --config.data.path=FOLDER
    python train.py --config=configs/lm/scale.py:linear,1b --compile_only --topology=v5p:2x2x2

Tokens are bytes, unless config.data.tokenizer names a tokenizer.json.  The default data set is the
text of the quick start, which shows whether a size fits but is too small to train it.  Training is
in bf16 with AdamW; layers are in a scan and recomputed in the backward pass; parameters and
optimizer are sharded over config.mesh.fsdp devices.  Sizes are nominal: 12 D^2 parameters per
layer, as for softmax and linear attention; docs/scaling.md has the TPUs that each size fits on.
The config was not run here.
"""

import ml_collections

from configs import default
from linear_transformer.errors import ConfigError

# Width, layers, heads, devices along "fsdp", peak learning rate.
SIZES = {
    "125m": (768, 18, 12, 1, 6e-4),
    "350m": (1024, 28, 16, 4, 3e-4),
    "1b": (2048, 20, 16, 8, 2e-4),
    "7b": (4096, 34, 32, 16, 1.2e-4),
}


def get_config(variant: str = "linear,125m") -> ml_collections.ConfigDict:
    name, _, size = variant.partition(",")
    if size not in SIZES:
        raise ConfigError(
            f"--config=...:{variant}: write MECHANISM,SIZE; the sizes are {', '.join(SIZES)}"
        )
    width, num_layers, heads, fsdp, learning_rate = SIZES[size]
    config = default.get_config(name, width=width, num_layers=num_layers)
    config.num_steps = 100_000
    config.log_every = 100
    config.eval_every = config.checkpoint_every = 1_000
    config.mesh.fsdp = fsdp
    config.data.update(batch_size=64, sequence_length=2_048)
    config.model.update(num_heads=heads, scan_layers=None, dtype="bfloat16", remat="full")
    if name == "cosformer":
        config.model.mixers.cosformer.max_length = None
    config.optimizer.update(
        name="adamw",
        learning_rate=learning_rate,
        options={"b2": 0.95},
        warmup_steps=2_000,
        final_fraction=0.1,
    )
    return config
