"""Every shipped config, at its size: a step by shapes alone.

The data are files that the tests write in the official formats: a program knows their shapes and
the number of words, classes and levels, and these are the real ones.
"""

import functools
import importlib
import io
import math

import chex
import jax
import numpy as np
import pytest
import soundfile
from etils import epath
from PIL import Image

from linear_transformer.compile import ahead_of_time
from linear_transformer.data.listops import dataset as listops
from linear_transformer.data.music import midi
from linear_transformer.data.pathfinder import dataset as pathfinder
from linear_transformer.runtime import accelerators
from tests.layers import slow_except
from tests.training import runs

CONFIGS = runs.ROOT / "configs"
RNG = np.random.default_rng(0)
KINDS = {"v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6"}  # as JAX calls them


def write_wikitext(folder):
    """As many different words as WikiText-103 has."""
    words = " ".join(f"w{n}" for n in range(267_735))
    for number, part in enumerate(("train", "valid", "test")):
        text = f" \n = Title = \n \n {words} w{number} \n"
        (folder / f"wiki.{part}.tokens").write_text(text)


def write_idx(folder):
    for name in ("train", "t10k"):
        for kind, shape in (("images-idx3", (24, 28, 28)), ("labels-idx1", (24,))):
            header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            content = RNG.integers(10, size=shape, dtype=np.uint8).tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + content)


def write_cifar10(folder):
    for level, name in enumerate((*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")):
        image = bytes([0]) + bytes([level]) * 3 * 32 * 32  # a label and one grey
        (folder / f"{name}.bin").write_bytes(4 * image)


def write_imagenet(folder):
    """A thousand classes of one image."""
    image = io.BytesIO()
    Image.new("RGB", (256, 256)).save(image, "JPEG")
    for part in ("train", "val"):
        for label in range(1000):
            (folder / part / f"n{label:08}").mkdir(parents=True)
            (folder / part / f"n{label:08}" / "0.JPEG").write_bytes(image.getvalue())


def write_reviews(folder):
    for half in ("train", "test"):
        for name in ("neg", "pos"):
            (folder / half / name).mkdir(parents=True)
            for number in range(20):
                (folder / half / name / f"{number}_7.txt").write_text(f"{half} {name} {number}")


def write_articles(folder):
    for split in ("train", "eval", "test"):
        rows = "".join(f"{n % 2}.0\tP{n}\tQ{n}\ttext {n}\t{split}\n" for n in range(8))
        (folder / f"new_aan_pairs.{split}.tsv").write_text(rows)


def write_listops(folder):
    trees = ((f"[MAX {n % 10} {n // 20} ]", max(n % 10, n // 20)) for n in range(60))
    listops.write(epath.Path(folder), dict.fromkeys(listops.FILES, 20), iter(trees))


def write_pathfinder(folder):
    options = {"difficulty": "hard", "images": 40, "seed": 0, "processes": 1}
    pathfinder.write(epath.Path(folder), size=32, **options)
    (folder / "pathfinder32").rename(folder / "32")
    for path in (folder / "32").iterdir():
        path.rename(folder / path.name)


def write_midi(folder):
    for number in range(20):
        notes = np.zeros(1200, midi.NOTE)
        notes["onset"] = np.arange(1200) * 0.1
        notes["duration"] = 0.1
        notes["pitch"] = 40 + np.arange(1200) % (20 + number)
        notes["velocity"] = 64
        midi.write_notes(epath.Path(folder / f"{number}.mid"), notes)


def write_speech(folder):
    """Kaldi's folder for the Wall Street Journal."""
    for subset in ("train_si284", "test_dev93", "test_eval92"):
        (folder / subset).mkdir()
        sound = folder / subset / "a.wav"
        soundfile.write(sound, RNG.normal(size=16_000).astype(np.float32) / 8, 16_000)
        names = [f"u{n:02}" for n in range(20)]
        (folder / subset / "wav.scp").write_text("".join(f"{n} {sound}\n" for n in names))
        (folder / subset / "text").write_text("".join(f"{n} HELLO WORLD\n" for n in names))


BYTES = {"dataset": "embedded"}  # text of bytes in the place of a corpus of bytes

# Config and variant -> TPUs, what writes the data, and changes of config.data.
CASES = {
    "default.py:linear": ("v5e:1x1", None, {}),
    "lm/shakespeare.py:linear": ("v5e:1x1", None, BYTES),
    "lm/enwik8.py:katharopoulos": ("v5e:2x2", None, BYTES),
    "lm/text8.py:softmax": ("v6e:2x2", None, BYTES),
    "lm/wikitext103.py:katharopoulos": ("v5p:2x2x1", write_wikitext, {}),
    "lm/scale.py:linear,125m": ("v5e:2x2", None, {}),
    "lm/scale.py:gla,350m": ("v6e:2x2", None, {}),
    "lm/scale.py:softmax,1b": ("v5e:4x4", None, {}),
    "lm/scale.py:linear,7b": ("v5p:2x2x4", None, {}),
    "lm/hybrids.py:qwen3_next": ("v5e:2x2", None, {}),
    "lm/hybrids.py:kimi_linear": ("v5e:4x4", None, {}),
    "lm/hybrids.py:samba": ("v5e:2x2", None, {}),
    "lm/hybrids.py:griffin": ("v5e:2x4", None, {}),
    "lra/listops.py:linear": ("v5e:2x2", write_listops, {}),
    "lra/text.py:transnormer_t2": ("v5e:2x2", write_reviews, {}),
    "lra/retrieval.py:linear": ("v6e:2x2", write_articles, {}),
    "lra/image.py:gla": ("v5e:2x2", write_idx, {}),
    "lra/pathfinder.py:lion_s": ("v5p:2x2x1", write_pathfinder, {}),
    "papers/arora2023/mqar.py:softmax": ("v5e:1x1", None, {}),
    "papers/grazzi2024/parity.py:delta_net,negative": ("v5e:1x1", None, {}),
    "papers/gu2023/induction_heads.py:mamba": ("v5e:1x1", None, {}),
    "papers/hadjeres2021/piano.py": ("v5e:1x1", write_midi, {}),
    "papers/hadjeres2021/piano_small.py": ("v5e:1x1", write_midi, {"dataset": "midi_folder"}),
    "papers/hadjeres2021/chorales.py": ("v5e:1x1", write_midi, {"dataset": "midi_folder"}),
    "papers/katharopoulos2020/copying.py:linear": ("v5e:2x2", None, {}),
    "papers/katharopoulos2020/mnist.py:linear": ("v5e:2x2", write_idx, {}),
    "papers/katharopoulos2020/cifar10.py:linear": ("v6e:1x1", write_cifar10, {}),
    "papers/katharopoulos2020/speech.py:linear": (
        "v5e:2x2",
        write_speech,
        {"units": "characters"},
    ),
    "papers/nanogpt2022/shakespeare_char.py:softmax": ("v5e:1x1", None, BYTES),
    "papers/qin2022/wikitext103_ar.py:t2": ("v5p:2x2x1", write_wikitext, {}),
    "papers/qin2022/wikitext103_bidirectional.py:t1": ("v5p:2x2x1", None, BYTES),
    "papers/qin2022/ablations.py:split_6_6": ("v5e:4x4", None, BYTES),
    "papers/shen2021/fashion_mnist.py:efficient": ("v5e:1x1", write_idx, {}),
    "papers/shen2021/imagenet.py:two_modules": ("v5e:2x2", write_imagenet, {}),
    "papers/yang2024/memorization.py:gla": ("v5e:1x1", None, {}),
    "recall/induction_heads.py:linear": ("v5e:1x1", None, {}),
    "recall/mad.py:compression,linear": ("v5e:1x1", None, {}),
    "recall/modular_arithmetic.py:gla": ("v6e:1x1", None, {}),
    "recall/mqar.py:gated_delta_net": ("v5e:1x1", None, {}),
    "recall/needle.py:hybrid": ("v5e:1x1", None, {}),
    "recall/parity.py:delta_net": ("v5e:1x1", None, {}),
    "recall/selective_copying.py:mamba2": ("v6e:1x1", None, {}),
    "scorecard/task.py:s3,delta_net": ("v5e:1x1", None, {}),
}
# What configs share.
NO_EXPERIMENTS = {"lra/variants.py", "recall/synthetic.py"}


def test_all_configs_are_here():
    shipped = {
        name
        for path in CONFIGS.rglob("*.py")
        if "def get_config(" in path.read_text()
        and (name := path.relative_to(CONFIGS).as_posix()) not in NO_EXPERIMENTS
    }
    assert shipped == {case.partition(":")[0] for case in CASES}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The config of a case, with its data written once."""

    @functools.cache
    def written(write):
        folder = tmp_path_factory.mktemp(write.__name__)
        write(folder)
        return folder

    def load(case):
        name, _, variant = case.partition(":")
        module = importlib.import_module(f"configs.{name[:-3].replace('/', '.')}")
        config = module.get_config(*filter(None, [variant]))
        _, write, changes = CASES[case]
        if write is not None:
            config.data.path = str(written(write))
        config.data.update(changes)
        return config

    return load


# A trace takes seconds: one of each task, and of what only a config puts together.
TRACED = (
    "default.py:linear",
    "lm/scale.py:linear,125m",
    "lm/hybrids.py:qwen3_next",
    "lra/retrieval.py:linear",
    "lra/pathfinder.py:lion_s",
    "papers/gu2023/induction_heads.py:mamba",
    "papers/hadjeres2021/piano_small.py",
    "papers/katharopoulos2020/mnist.py:linear",
    "papers/katharopoulos2020/speech.py:linear",
    "papers/qin2022/wikitext103_bidirectional.py:t1",
    "papers/shen2021/fashion_mnist.py:efficient",
    "recall/mad.py:compression,linear",
    "scorecard/task.py:s3,delta_net",
)


def training_step(case, load):
    """Not traced yet; every parameter is declared, and a device can hold its part of the state."""
    version, _, chips = CASES[case][0].partition(":")
    devices = jax.devices() * math.prod(map(int, chips.split("x")))
    made = ahead_of_time.training_step(load(case), devices)
    leaves = jax.tree.leaves(made.state)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    assert held < accelerators.find(KINDS[version]).memory
    return made


@pytest.mark.parametrize("case", [case for case in CASES if case not in TRACED])
def test_states(case, load):
    training_step(case, load)


@pytest.mark.parametrize("case", slow_except(TRACED, CASES))
def test_steps(case, load):
    """A step gives a state like the one that it takes."""
    mesh, step, state, batch = training_step(case, load)
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {"loss", "gradient_norm"} <= metrics.keys()
    chex.assert_shape(jax.tree.leaves(metrics), ())
