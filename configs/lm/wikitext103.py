"""WikiText-103, words: the autoregressive setting of Qin et al. 2022 (TransNormer, table 4).

    python train.py --config=configs/lm/wikitext103.py \
        --config.data.path=FOLDER_WITH_wikitext-103-v1.zip
    python eval.py --workdir=runs/lm/wikitext103 --split=test

The model has 6 layers of width 512 and the benchmark's vocabulary of 267,735 words with tied
embeddings; it is trained on 128 x 512 tokens per step for 100,000 steps.  Published word
perplexity, validation / test: softmax (`:softmax`) 29.63 / 31.01, 1+elu linear attention
(`:katharopoulos`) 32.63 / 34.25.  Training needs accelerators (8 GPUs in the paper); the config was
not run here.
"""

import ml_collections

from configs import default


def get_config(variant: str = "katharopoulos") -> ml_collections.ConfigDict:
    config = default.get_config(variant, width=512, num_layers=6)
    config.num_steps = 100_000
    config.log_every = 100
    config.eval_every = 5_000
    config.checkpoint_every = 5_000
    config.data.update(
        dataset="wikitext103", tokenizer="words", batch_size=128, sequence_length=512
    )
    config.model.update(num_heads=8, dropout=0.1, scan_layers=None)
    config.model.activation = "relu"
    config.optimizer.update(
        name="adam",
        learning_rate=5e-4,
        weight_decay=0.0,
        options={"b1": 0.9, "b2": 0.98},
        schedule="rsqrt",
        warmup_steps=8_000,
        clip_norm=0.0,
    )
    return config
