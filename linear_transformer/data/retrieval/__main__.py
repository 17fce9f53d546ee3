"""Writes pairs of passages: python -m linear_transformer.data.retrieval --out=DIR"""

from absl import flags
from etils import epath

from linear_transformer.data.retrieval.dataset import NUM_PAIRS, pair_passages, works, write_tsv
from linear_transformer.data.text.corpus import SPLITS
from linear_transformer.runtime import program


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "The folder to write.", required=True)
    flags.DEFINE_integer(
        "pairs", NUM_PAIRS, "For training; a tenth as many in each other split.", lower_bound=2
    )


def main() -> None:
    folder = epath.Path(flags.FLAGS.out).expanduser()
    texts = pair_passages(works(), flags.FLAGS.pairs)
    write_tsv(texts, folder)
    print(f"{', '.join(str(len(texts.labels[split])) for split in SPLITS)} pairs: {folder}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
