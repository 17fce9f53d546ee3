"""ImageNet with ResNet-50 and modules of efficient attention: Shen et al. 2021 (arXiv:1812.01243).

    python train.py --config=configs/papers/shen2021/imagenet.py:one_module \
        --config.data.path=FOLDER_WITH_train_AND_val
    python eval.py --workdir=runs/papers/shen2021/imagenet-one_module

train/ and val/ in the data folder have one folder of .JPEG files for each of the 1000 classes.
Published top-1 accuracy:

    variant         modules after                     top-1, %   parameters
    :resnet50       -                                   76.052        25.6M
    :one_module     the last block of res4              76.932        28.7M
    :two_modules    the last blocks of res3 and res4    77.312        29.5M
    :non_local      as one_module, with the quadratic module    -     28.7M

The paper states the number of modules, but not their places or the training.  Assumed are the
places above; one head, keys of half the channels and values of all channels; the usual training of
ResNet-50, 90 epochs of 256 images of 224 x 224 pixels with SGD of momentum 0.9, 5 epochs of warm-up
to 0.1, and a cosine to 0 (Goyal et al. 2017, He et al. 2019); random crops and flips in training,
and centre crops in validation.  The learning rate is proportional to the batch size: use 0.4 and a
quarter of the steps for 1024 images.

Deviations: norms are GroupNorms instead of BatchNorms, which are as good at such batch sizes (Wu &
He 2018); weight decay is decoupled and applies to kernels only; all three channels of a pixel are
scaled in the same way.

Training needs accelerators; the config was not run here.  fashion_mnist.py is the twin that trains
on 2 cores.
"""

import ml_collections

from linear_transformer.errors import ConfigError

EPOCHS, WARMUP_EPOCHS = 90, 5
BATCH_SIZE = 256
STEPS_PER_EPOCH = 1_281_167 // BATCH_SIZE

# The last blocks of res3 and res4 are numbers 7 and 13.
VARIANTS = {
    "resnet50": {"attention": "efficient", "attention_after": ()},
    "one_module": {"attention": "efficient", "attention_after": (13,)},
    "two_modules": {"attention": "efficient", "attention_after": (7, 13)},
    "non_local": {"attention": "non_local", "attention_after": (13,)},
}


def get_config(variant: str = "one_module") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ConfigError(f"--config=...:{variant}: the variants are {', '.join(VARIANTS)}")
    return ml_collections.ConfigDict(
        {
            "task": "image_classification",
            "seed": 0,
            "num_steps": EPOCHS * STEPS_PER_EPOCH,
            "log_every": 100,
            "eval_every": STEPS_PER_EPOCH,
            "eval_batches": 200,
            "checkpoint_every": STEPS_PER_EPOCH,
            "keep_checkpoints": 2,
            "final_evaluation": True,
            "sample": False,
            "accumulate_steps": 1,
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "sequence": 1},
            "ema_decay": 0.0,
            "data": {
                "dataset": "image_folder",
                "path": "",
                "image_size": 224,
                "batch_size": BATCH_SIZE,
                "flip": True,
                "padding": 0,
            },
            "model": {
                "stage_blocks": (3, 4, 6, 3),
                "block": "bottleneck",
                "width": 64,
                "stem": "photograph",
                "norm_groups": 32,
                "dtype": "float32",
                **VARIANTS[variant],
            },
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                # The usual 1e-4 is part of the gradient, which momentum multiplies by ten.
                "weight_decay": 1e-3,
                "options": {"momentum": 0.9},
                "schedule": "cosine",
                "schedule_steps": 0,
                "warmup_steps": WARMUP_EPOCHS * STEPS_PER_EPOCH,
                "final_fraction": 0.0,
                "clip_norm": 0.0,
            },
        }
    )
