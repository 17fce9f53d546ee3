"""Characters of Shakespeare at the CPU size of nanoGPT's README (Karpathy 2022).

    python train.py --config=configs/papers/nanogpt2022/shakespeare_char.py:softmax \
        --config.data.path=input.txt
    python eval.py --workdir=runs/papers/nanogpt2022/shakespeare_char-softmax --split=test

Any mechanism of configs/mechanisms.py is a variant.  The data is the file
https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt of
1,115,394 bytes.  As published: 4 layers of width 128 with 4 heads, learned positions and tied
embeddings, trained for 2,000 steps of 12 x 64 characters with AdamW, a warm-up of 100 steps to 1e-3
and a cosine to 1e-4; the loss of :softmax is 1.88 nats per character.

Differences: nanoGPT validates on random windows of the last tenth of the text, this project on all
windows of its first half ("validation") and of its second half ("test").  Weights start from the
normal distribution of this project, and norms have a bias.
"""

import ml_collections

from configs import default


def get_config(variant: str = "softmax") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=128, num_layers=4)
    config.num_steps = 2_000
    config.eval_every = config.checkpoint_every = 500
    config.eval_batches = 100
    config.sample = False
    config.data.update(dataset="local_text", batch_size=12, sequence_length=64)
    config.model.positions = "learned"
    config.optimizer.update(
        name="adamw",
        learning_rate=1e-3,
        warmup_steps=100,
        final_fraction=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.optimizer.options = {"b2": 0.99}
    return config
