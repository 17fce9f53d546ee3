"""Log mel filterbanks of sound files.

The features are 40 filters over windows of 25 ms every 10 ms, as in Kaldi (Povey window,
pre-emphasis of 0.97, no dither), normalised to mean 0 and variance 1 over the frames of an
utterance.  Katharopoulos et al. 2020 (section 4.3) uses 40 filterbanks; this project assumes the
normalisation.
"""

from typing import BinaryIO

import kaldi_native_fbank
import numpy as np
import soundfile
from etils import epath
from jaxtyping import Float32

from linear_transformer.data.errors import DataError
from linear_transformer.data.speech.sound_headers import require_whole

NUM_FILTERS = 40
WINDOW_MS, SHIFT_MS = 25, 10

Samples = Float32[np.ndarray, " N"]
Frames = Float32[np.ndarray, "T 40"]

_FULL_SCALE = 32_768  # Kaldi's samples are 16-bit integers
_SMALLEST_DEVIATION = 1e-5  # avoids a division by 0 for a constant filter


def count_frames(num_samples: int, sample_rate: int) -> int:
    """Returns the number of windows that are completely inside the sound."""
    window, shift = (sample_rate * ms // 1000 for ms in (WINDOW_MS, SHIFT_MS))
    return max(1 + (num_samples - window) // shift, 0)


def log_mel(samples: Samples, sample_rate: int) -> Frames:
    """Computes the normalised log energies of the filters, from 20 Hz to half the sample rate.

    Args:
      samples: samples from -1 to 1.
      sample_rate: samples per second.
    """
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.frame_length_ms = WINDOW_MS
    options.frame_opts.frame_shift_ms = SHIFT_MS
    options.frame_opts.dither = 0  # dither is random
    options.mel_opts.num_bins = NUM_FILTERS
    computer = kaldi_native_fbank.OnlineFbank(options)
    # The type stub requires a sequence, but the function accepts arrays.
    computer.accept_waveform(sample_rate, samples * _FULL_SCALE)  # pyright: ignore[reportArgumentType]
    computer.input_finished()
    frames = np.empty((computer.num_frames_ready, NUM_FILTERS), np.float32)
    for n in range(len(frames)):
        frames[n] = computer.get_frame(n)
    return normalize(frames)


def normalize(frames: Frames) -> Frames:
    """Normalises each filter to mean 0 and variance 1."""
    if not len(frames):
        return frames
    frames = frames.astype(np.float64)
    deviation = np.maximum(frames.std(axis=0), _SMALLEST_DEVIATION)
    return ((frames - frames.mean(axis=0)) / deviation).astype(np.float32)


def frames_of_file(path: epath.Path, sample_rate: int) -> int:
    """Returns the number of frames, from the header of a sound file.

    Raises:
      DataError: see `read_samples`.
    """
    with _opened(path) as file:
        return count_frames(_open_sound(file, str(path), sample_rate).frames, sample_rate)


def read_file(path: epath.Path, sample_rate: int) -> Frames:
    """Reads a sound file and computes its filterbanks.

    Raises:
      DataError: see `read_samples`.
    """
    with _opened(path) as file:
        return log_mel(read_samples(file, str(path), sample_rate), sample_rate)


def read_samples(file: BinaryIO, name: str, sample_rate: int) -> Samples:
    """Reads the samples of a sound: WAV, FLAC, Ogg, NIST SPHERE without compression, ...

    Args:
      file: open file.
      name: name of the file, for messages.
      sample_rate: required rate, in samples per second.

    Raises:
      DataError: the file is not a sound, is damaged or truncated, has several channels, or has
        another rate.
    """
    sound = _open_sound(file, name, sample_rate)
    try:
        samples = sound.read(dtype="float32")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{name}: damaged ({error.error_string})") from error
    if len(samples) != sound.frames:
        raise DataError(f"{name}: damaged ({len(samples)} of {sound.frames} samples)")
    return samples


def _opened(path: epath.Path) -> BinaryIO:
    try:
        return path.open("rb")  # pyright: ignore[reportReturnType] - etils types no modes
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from error


def _open_sound(file: BinaryIO, name: str, sample_rate: int) -> soundfile.SoundFile:
    require_whole(file, name)
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{name}: not a sound file, or damaged ({error.error_string})") from error
    if sound.channels != 1:
        raise DataError(f"{name}: {sound.channels} channels; it must have one")
    if sound.samplerate != sample_rate:
        raise DataError(
            f"{name}: {sound.samplerate} samples a second; config.data.sample_rate is {sample_rate}"
        )
    return sound
