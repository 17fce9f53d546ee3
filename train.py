"""Trains the experiment that a config describes.

python train.py                                            the quick start, on a CPU in minutes
python train.py --config=configs/lm/shakespeare.py:softmax --config.num_steps=500
python train.py --config=... --print_config                all keys of a config, with meanings
python train.py --config=... --workdir=DIR                 run again: continues a stopped run
python train.py --distributed=auto --workdir=gs://...      on every worker of a TPU slice
python train.py --config=... --compile_only --topology=v5e:4x4     does it fit on these TPUs?
"""

from linear_transformer.cli import train

if __name__ == "__main__":
    train.run()
