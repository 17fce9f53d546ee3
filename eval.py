"""Evaluates a run, or samples from its language model.

python eval.py --workdir=runs/default --split=test
python eval.py --workdir=runs/default --prompt="def main():" --num_tokens=200 --temperature=0.8
python eval.py --config=configs/default.py --compile_only --topology=v5e:2x2    does decoding fit?
"""

from linear_transformer.cli import eval

if __name__ == "__main__":
    eval.run()
