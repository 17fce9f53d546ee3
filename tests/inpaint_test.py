"""The inpaint command as a user runs it, on an untrained model."""

import numpy as np
import pytest
from etils import epath

from configs.papers.hadjeres2021 import piano_small
from linear_transformer import inpaint
from linear_transformer.data.music import midi
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run
from linear_transformer.inference.generation import Sampler
from linear_transformer.training.loop import train
from tests.cli.train_test import assert_one_line
from tests.training import runs


def performance(count=60, seed=0):
    rng = np.random.default_rng(seed)
    notes = np.zeros(count, midi.NOTE)
    notes["onset"] = 0.5 + 0.25 * np.arange(count)
    notes["duration"] = 0.2
    notes["pitch"] = rng.integers(40, 80, count)
    notes["velocity"] = rng.integers(1, 128, count)
    return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run`, `a.mid`, and files that are none."""
    folder = tmp_path_factory.mktemp("inpaint")
    (folder / "midi").mkdir()
    for number in range(3):
        midi.write_notes(epath.Path(folder / "midi" / f"{number}.mid"), performance(seed=number))
    midi.write_notes(epath.Path(folder / "a.mid"), performance())
    (folder / "empty.mid").touch()
    (folder / "short.mid").write_bytes((folder / "a.mid").read_bytes()[:100])
    (folder / "text.mid").write_text("This is no music.")
    config = piano_small.get_config()
    config.data.update(
        dataset="midi_folder", path=str(folder / "midi"), batch_size=2, sequence_length=128
    )
    config.model.update(
        width=16, encoder_layers=1, decoder_layers=1, num_heads=2, feed_forward_width=16
    )
    config.update(num_steps=1, log_every=1, checkpoint_every=1, final_evaluation=False)
    train(config, epath.Path(folder / "run"))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return Run.load(epath.Path(folder / "run"))


def command(folder, *changes):
    flags = {"workdir": "run", "midi": "a.mid", "start": "5", "end": "8", "output": "out.mid"}
    flags |= dict(change.split("=") for change in changes)
    for name in ("workdir", "midi", "output"):
        flags[name] = str(folder / flags[name])
    return ["-m", "linear_transformer.inpaint", *(f"--{k}={v}" for k, v in flags.items() if v)]


def test_command(folder):
    """Only the stretch is new, as many notes as before, and there is a picture."""
    result = runs.execute(command(folder))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("12 new notes in ")
    before = midi.read_notes(epath.Path(folder / "a.mid"))
    after = midi.read_notes(epath.Path(folder / "out.mid"))
    assert (folder / "out.png").read_bytes()[:4] == b"\x89PNG"

    def outside(notes):
        return notes[(notes["onset"] < 5) | (notes["onset"] > 8)]

    kept, expected = outside(after), outside(before)
    for name in ("onset", "pitch", "velocity"):
        np.testing.assert_allclose(kept[name], expected[name], atol=1e-9)
    inside = after[(after["onset"] >= 5) & (after["onset"] <= 8)]
    assert 0 < inside.size <= 12  # two of one time and pitch are one
    assert inside["onset"][0] == pytest.approx(5.0)


MISTAKES = {
    "truncated file": (["midi=short.mid"], "short.mid: not a MIDI file, or damaged"),
    "no MIDI file": (["midi=text.mid"], "text.mid: not a MIDI file, or damaged"),
    "beyond the notes": (["start=50", "end=60"], "--start=50: the last note of the file begins at"),
    "empty file": (["midi=empty.mid"], "empty.mid: the file is empty"),
    "too long": (["start=1", "end=14"], "fills at most 16"),
    "no folder": (["output=none/out.mid"], "none/out.mid: cannot be written"),
    "no run": (["workdir=none"], "--workdir="),
    "missing flag": (["start="], "start"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(folder, name):
    """One line, status 2, no traceback."""
    changes, message = MISTAKES[name]
    assert_one_line(runs.execute(command(folder, *changes)), message)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (9.0, 8.0, "--start=9 --end=8: start must be"),
        (-1.0, 8.0, "--start=-1 --end=8: start must be"),
        (float("nan"), 8.0, "--start=nan"),
        (1.0, float("inf"), "--end=inf"),
        (50.0, 60.0, "--start=50: the last note of the file begins at 15.25 s"),
        (5.3, 5.4, "no notes begin there; say how many to write with --num_notes"),
    ],
)
def test_stretches(start, end, message):
    with pytest.raises(ConfigError, match=message):
        inpaint.cut(performance(), start, end, None)


def new_notes(run, notes, start, end, num_notes=None):
    gap = inpaint.cut(notes, start, end, num_notes)
    return inpaint.fill(run, gap, Sampler(), 0)


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [(0.0, 2.0, 6), (4.0, 9.0, 6), pytest.param(0.0, 3.1, 11, marks=pytest.mark.slow)],
)
def test_begin_and_end(run, start, end, count):
    """Stretches that hold the first or the last note."""
    new = new_notes(run, performance(20), start, end)
    assert new.size == count
    assert start <= new["onset"].min()
    assert new["onset"].max() <= end


@pytest.mark.slow
def test_everything_and_nothing(run):
    """Stretches without a note, with all of them, and with too many."""
    notes = performance(20)
    new = new_notes(run, np.delete(notes, slice(6, 12)), 2.1, 3.3, num_notes=5)
    assert new.size == 5
    assert new["onset"][0] == 2.1
    assert new["onset"].max() <= 3.3
    assert new_notes(run, notes, 0.0, 10.0, num_notes=3).size == 3
    with pytest.raises(ConfigError, match="fills at most 16"):
        new_notes(run, notes, 0.0, 10.0)
