"""Replaces a passage of a piano performance by a new one that fits the notes around it.

python -m linear_transformer.inpaint --workdir=runs/papers/hadjeres2021/piano_small \
    --midi=IN.mid --start=10 --end=14 --output=OUT.mid

All notes with onsets from --start to --end (seconds) are replaced by the same number of new notes,
or by --num_notes.  The other notes stay, but the sustain pedal is merged into their durations.  The
program writes OUT.mid, and OUT.png with the piano rolls before and after.
"""

import dataclasses
import math
import time

import numpy as np
from absl import flags
from etils import epath

from linear_transformer.data.music import midi
from linear_transformer.data.music.note_pipeline import framed, padded
from linear_transformer.errors import ConfigError
from linear_transformer.inference.evaluation import Run
from linear_transformer.inference.generation import Sampler
from linear_transformer.inference.inpainting import inpaint
from linear_transformer.runtime import program
from linear_transformer.runtime.pictures import new_figure, save_figure
from linear_transformer.tasks.inpainting import Inpainting
from linear_transformer.training import run_folder


@dataclasses.dataclass(frozen=True)
class Gap:
    """Passage of a performance that the model fills.

    Attributes:
      before, after: the notes that stay, of dtype `midi.NOTE`.
      onset: onset of the first new note, in seconds.
      num_notes: number of new notes.
      seconds: seconds after `onset` within which all new notes must begin.
    """

    before: np.ndarray
    after: np.ndarray
    onset: float
    num_notes: int
    seconds: float


def cut(notes: np.ndarray, start: float, end: float, num_notes: int | None) -> Gap:
    """Removes the notes with onsets in [start, end), in seconds.

    Raises:
      ConfigError: the passage is empty or begins after the last note.
    """
    if not 0 <= start < end < math.inf:
        raise ConfigError(
            f"--start={start:g} --end={end:g}: start must be 0 or more, and before end, both finite"
        )
    last = notes["onset"][-1]
    if start > last:
        raise ConfigError(f"--start={start:g}: the last note of the file begins at {last:.2f} s")
    before, after = notes[notes["onset"] < start], notes[notes["onset"] >= end]
    inside = notes[before.size : notes.size - after.size]
    if num_notes is None:
        num_notes = inside.size
    if num_notes < 1:
        raise ConfigError(
            f"--start={start:g} --end={end:g}: no notes begin there; say how many to write with "
            "--num_notes"
        )
    onset = float(inside["onset"][0]) if inside.size else start
    return Gap(before, after, onset, num_notes, end - onset)


def fill(run: Run, gap: Gap, sampler: Sampler, seed: int) -> np.ndarray:
    """Generates the new notes of a gap.

    The model reads a window of its training length, with the gap in the middle.

    Raises:
      ConfigError: the run has another task or other music, or the gap does not fit into the
        window.
    """
    task = run.task
    if not isinstance(task, Inpainting) or task.corpus.time_shift is None:
        raise ConfigError(f"--workdir={run.workdir}: not a run of inpainting piano notes")
    corpus, num_events, time_shift = task.corpus, task.num_events, task.corpus.time_shift
    if gap.num_notes > num_events // 2:
        raise ConfigError(
            f"the gap has {gap.num_notes} notes, and this model fills at most {num_events // 2} "
            "(half of its window); choose a shorter stretch, or --num_notes"
        )
    before = midi.encode(gap.before)
    if gap.before.size:
        before[-1, -1] = midi.time_shift(gap.onset - gap.before["onset"][-1])
    before = framed(corpus, before, True, False)
    after = framed(corpus, midi.encode(gap.after), False, True)
    after_onset = gap.after["onset"][0] if gap.after.size else gap.onset + gap.seconds

    room = num_events - gap.num_notes
    num_before = min(len(before), max(room // 2, room - len(after)))
    before, after = before[len(before) - num_before :], after[: room - num_before]
    masked = np.zeros((gap.num_notes, 4), np.int32)
    events = padded(corpus, np.concatenate([before, masked, after]), 0, num_events)
    elapsed = corpus.elapsed(events)
    stop = num_before + gap.num_notes
    # Masked events have time shift 0 so far, so the events after the gap start at its onset.
    elapsed[stop:] += round(100 * (after_onset - gap.onset))
    filled, _ = inpaint(
        run.graphdef,
        run.parameters,
        events[None],
        elapsed[None],
        num_before,
        stop,
        num_values=corpus.num_values,
        time_shift=tuple(time_shift.tolist()),
        time_left=min(int(100 * gap.seconds), 2**31 - 1),
        sampler=sampler,
        seed=seed,
    )
    return midi.decode(np.asarray(filled[0]), gap.onset)


def plot(path: epath.Path, pictures: dict[str, np.ndarray], start: float, end: float) -> None:
    """Draws piano rolls around the passage, one below the other; louder notes are darker."""
    margin = max(end - start, 2.0)
    left, right = max(start - margin, 0.0), end + margin
    figure, panels = new_figure(len(pictures), size=(9, 5), sharex=True, sharey=True)
    for axes, (title, notes) in zip(panels[:, 0], pictures.items(), strict=True):
        seen = notes[(notes["onset"] < right) & (notes["onset"] + notes["duration"] > left)]
        inside = (seen["onset"] >= start) & (seen["onset"] < end)
        colors = np.where(inside[:, None], (0.85, 0.25, 0.1, 1.0), (0.15, 0.3, 0.6, 1.0))
        colors[:, 3] = 0.25 + 0.75 * np.clip(seen["velocity"], 0, 127) / 127
        axes.axvspan(start, end, color="0.93")
        axes.barh(seen["pitch"], seen["duration"], left=seen["onset"], height=0.9, color=colors)
        axes.set(title=title, ylabel="MIDI pitch", xlim=(left, right))
    panels[-1, 0].set(xlabel="seconds")
    save_figure(figure, path)


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of the task inpainting.", required=True)
    flags.DEFINE_string("midi", None, "The performance.", required=True)
    flags.DEFINE_float("start", None, "Where the new stretch begins, in seconds.", required=True)
    flags.DEFINE_float("end", None, "Where it ends.", required=True)
    flags.DEFINE_string("output", None, "The .mid file to write.", required=True)
    flags.DEFINE_integer("num_notes", None, "New notes; by default as many as there are.")
    flags.DEFINE_float("temperature", 1.0, "0 takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Only the k most probable tokens; 0 for all.")
    flags.DEFINE_float("top_p", 0.95, "Only the most probable tokens of mass p.")
    flags.DEFINE_integer("seed", 0, "Seed of the sample.", 0, 2**32 - 1)


def main() -> None:
    values = flags.FLAGS
    sampler = Sampler(values.temperature, values.top_k, values.top_p)
    output = program.output_path(values.output)
    if output.suffix.lower() not in (".mid", ".midi"):
        raise ConfigError(f"--output={values.output}: the name must end in .mid")
    notes = midi.read_notes(epath.Path(values.midi))
    gap = cut(notes, values.start, values.end, values.num_notes)
    run = Run.load(run_folder.path_of(values.workdir))
    began = time.perf_counter()
    new = fill(run, gap, sampler, values.seed)
    seconds = time.perf_counter() - began
    after = np.sort(np.concatenate([gap.before, new, gap.after]), order=["onset", "pitch"])
    midi.write_notes(output, after)
    picture = output.with_suffix(".png")
    plot(picture, {"before": notes, "after": midi.read_notes(output)}, values.start, values.end)
    print(f"{new.size} new notes in {seconds:.1f} s, compilation included: {output}, {picture}")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
