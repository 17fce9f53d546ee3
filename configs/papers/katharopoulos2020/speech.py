"""Speech recognition with CTC: section 4.3 and table 3 of Katharopoulos et al. 2020.

    python train.py --config=configs/papers/katharopoulos2020/speech.py:linear \
        --config.data.path=kaldi/egs/wsj/s5/data
    python eval.py --workdir=runs/papers/katharopoulos2020/speech-linear

The published phoneme error rates of the validation split (%) and seconds per epoch, on the Wall
Street Journal corpus (80 hours), are: :bilstm 10.94 and 1,047, :softmax 5.12 and 2,711, :lsh (4
rounds) 9.33 and 2,250, :linear 8.08 and 824.  `unit_error_rate` of the validation split is this
error rate.

Inputs are 40 mel filterbanks.  The model has 9 post-norm layers of 6 heads of 32, a feed-forward of
768 and RAdam at 1e-4; :bilstm has 3 layers of 320 units in each direction, and Adam at 1e-3.  The
paper halves both rates when the validation error stalls; they are constant here.  The paper does
not state the following: concatenated positions and the dropout of 0.1 (as in the copy task), 16
utterances per step, 225,000 steps (100 epochs of 80 hours), CMUdict's first pronunciation for the
phonemes, chunks and buckets of :lsh.  The data folder follows Kaldi's recipe, with files instead of
commands in wav.scp.  Every row is padded to 2,400 frames, so seconds per epoch are not comparable.
This size was not run here.

`,small` (`:linear,small`) has 4 pre-norm layers of width 128 (:bilstm 2 layers of 64 units) and
learns characters from 330 voice prompts of Asterisk, 7 minutes of one speaker, for 1,200 steps.  On
2 cores (AMD EPYC, AVX-512, 2026-11-24), with other jobs on the machine, :linear takes 260 s, 8 s
per epoch.  Its character error rate is 64.3 % on the validation split and 64.7 % on the test split
(64.1 % and 64.3 % with config.beam_width=16): the model memorizes its training prompts (0.28 nats
per character) and hardly generalizes (3.36 nats).  A dropout of 0.2 gave an error rate of 82.6 %.
The other variants were not run.
"""

import ml_collections

from configs import default
from configs.papers.katharopoulos2020 import mechanisms
from linear_transformer.errors import ConfigError

NAMES = (*mechanisms.NAMES, "bilstm")


def get_config(variant: str = "linear") -> ml_collections.ConfigDict:
    name, *size = variant.split(",")
    if name not in NAMES or size not in ([], ["small"]):
        raise ConfigError(
            f"--config=...:{variant}: the variants are {', '.join(NAMES)}, "
            "each alone or with ',small'"
        )
    small = bool(size)
    config = default.get_config(
        mechanisms.NAMES.get(name, "katharopoulos"),
        width=128 if small else 192,
        num_layers=4 if small else 9,
    )
    config.task = "speech_recognition"
    config.encoder = "bilstm" if name == "bilstm" else "transformer"
    config.beam_width = 0
    config.data = ml_collections.ConfigDict(
        {
            "dataset": "kaldi",
            "path": "",
            "subsets": {
                "train": ("train_si284",),
                "validation": ("test_dev93",),
                "test": ("test_eval92",),
            },
            "sample_rate": 16_000,
            "units": "phonemes",
            "max_frames": 2_400,
            "max_units": 400,
            "batch_size": 16,
        }
    )
    if name == "bilstm":
        config.model = ml_collections.ConfigDict(
            {
                "hidden": 64 if small else 320,
                "num_layers": 2 if small else 3,
                "dropout": 0.0,
                "dtype": "float32",
            }
        )
    else:
        mechanisms.as_released(config, heads=4 if small else 6)
        config.model.scan_layers = not small
        mixer = config.model.pattern[0]
        config.model.mixers[mixer].direction = "bidirectional"
    if name == "lsh":
        config.model.mixers.lsh.update(chunking="sorted", rounds=4, buckets=64, chunk_size=32)
    config.num_steps = 225_000
    config.eval_every = config.checkpoint_every = 2_250
    config.optimizer.update(
        name="adam" if name == "bilstm" else "radam",
        learning_rate=1e-3 if name == "bilstm" else 1e-4,
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        clip_norm=0.0,
    )
    if small:
        config.data.update(
            dataset="asterisk",
            sample_rate=8_000,
            units="characters",
            max_frames=300,
            max_units=50,
            batch_size=8,
        )
        config.num_steps = 1_200
        config.log_every = 50
        config.eval_every = config.checkpoint_every = 300
        config.optimizer.update(
            learning_rate=2e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
        )
        if name != "bilstm":
            config.model.update(norm_position="pre", dropout=0.0)
    return config
