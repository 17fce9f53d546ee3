"""Sound files that the tests write: LibriSpeech's and Kaldi's folders, the prompts, broken ones."""

import io

import ml_collections
import numpy as np
import pytest
import soundfile
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.speech import filterbanks, utterances as speech
from linear_transformer.data.speech.speech_batches import (
    SpeechSource,
    evaluation_utterances,
    load_source,
    training_utterances,
)
from linear_transformer.data.speech.speech_units import (
    Characters,
    normalize,
)

RATE = 8_000
TEXTS = {"1-2-0000": "HELLO WORLD", "1-2-0001": "IT'S ME", "1-2-0002": "A"}


def tone(seconds, pitch=440.0, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=time.size)
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * noise).astype(np.float32)


def write_sounds(folder, suffix=".flac", rate=RATE):
    for n, name in enumerate(TEXTS):
        soundfile.write(folder / f"{name}{suffix}", tone(0.3 + 0.1 * n, rate=rate), rate)


@pytest.fixture
def librispeech(tmp_path):
    """Three utterances of 0.3, 0.4 and 0.5 s in each of two subsets."""
    for subset in ("train-a", "dev-a"):
        chapter = tmp_path / subset / "1" / "2"
        chapter.mkdir(parents=True)
        write_sounds(chapter)
        rows = "".join(f"{name} {text}\n" for name, text in TEXTS.items())
        (chapter / "1-2.trans.txt").write_text(rows)
    return tmp_path


@pytest.fixture
def kaldi(tmp_path):
    for subset in ("train-a", "dev-a"):
        (tmp_path / subset).mkdir()
        (tmp_path / "sounds" / subset).mkdir(parents=True)
        write_sounds(tmp_path / "sounds" / subset, ".wav")
        files = "".join(f"{name} sounds/{subset}/{name}.wav\n" for name in TEXTS)
        (tmp_path / subset / "wav.scp").write_text(files)
        rows = "".join(f"{name} {text}\n" for name, text in TEXTS.items())
        (tmp_path / subset / "text").write_text(rows)
    return tmp_path


def config_of(dataset, path, **changes):
    return ml_collections.ConfigDict(
        {
            "dataset": dataset,
            "path": str(path),
            "subsets": {"train": ("train-a",), "validation": ("dev-a",)},
            "sample_rate": RATE,
            "units": "characters",
            "max_frames": 60,
            "max_units": 12,
        }
        | changes
    )


def test_filterbanks():
    """A tone is loudest in the filters around its pitch; of all, mean 0 and variance 1."""
    low, high = (np.concatenate([tone(0.2, p), tone(0.2, 3_000.0)]) for p in (300.0, 1_500.0))
    features = [filterbanks.log_mel(samples, RATE) for samples in (low, high)]
    for frames in features:
        assert frames.shape == (38, 40) and frames.dtype == np.float32
        np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(frames.std(axis=0), 1, atol=1e-4)
    # Where the first tone is, its filter falls when the second one begins.
    falls = [frames[:15].mean(axis=0) - frames[-15:].mean(axis=0) for frames in features]
    assert falls[0].argmax() < falls[1].argmax()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000])
@pytest.mark.parametrize("extra", [-1, 0, 79, 160])
def test_frames_are_counted_without_reading(rate, extra):
    samples = tone(0.325, rate=rate)
    samples = np.resize(samples, samples.size + extra)
    expected = len(filterbanks.log_mel(samples, rate))
    assert filterbanks.count_frames(samples.size, rate) == expected


def test_silence_has_features_and_a_click_has_none():
    assert np.all(filterbanks.log_mel(np.zeros(RATE, np.float32), RATE) == 0)
    assert filterbanks.log_mel(np.zeros(50, np.float32), RATE).shape == (0, 40)


@pytest.mark.parametrize("dataset", ["librispeech", "kaldi"])
def test_folders(dataset, request):
    path = request.getfixturevalue(dataset)
    source = load_source(config_of(dataset, path))
    for split in ("train", "validation"):
        examples, numbers = source.split(split)
        np.testing.assert_array_equal(numbers, [0, 1, 2])
        assert source.left_out(split) == 0
        assert [e.utterance.transcript for e in examples] == [*TEXTS.values()]
        assert [e.utterance.num_frames for e in examples] == [28, 38, 48]
    (batch,) = evaluation_utterances(source, "validation", batch_size=4)
    assert batch["frames"].shape == (4, 60, 40) and batch["frames"].dtype == np.float32
    np.testing.assert_array_equal(batch["num_frames"], [28, 38, 48, 0])
    np.testing.assert_array_equal(batch["num_units"], [11, 7, 1, 0])
    np.testing.assert_array_equal(batch["weights"], [1, 1, 1, 0])
    written = [
        source.units.write(row[:n])
        for row, n in zip(batch["units"], batch["num_units"], strict=True)
    ]
    assert written == ["hello world", "it's me", "a", ""]
    expected = filterbanks.log_mel(tone(0.3), RATE)
    np.testing.assert_allclose(batch["frames"][0, :28], expected, atol=0.02)  # 16 bits
    assert not batch["frames"][0, 28:].any() and not batch["units"][0, 11:].any()


def test_training_goes_on_where_it_stopped(librispeech):
    source = load_source(config_of("librispeech", librispeech))
    batches = iter(training_utterances(source, batch_size=2, seed=1))
    first = [next(batches) for _ in range(3)]  # two epochs
    assert sorted(np.concatenate([b["labels"] for b in first]).tolist()) == [0, 0, 1, 1, 2, 2]
    again = iter(training_utterances(source, batch_size=2, seed=1))
    next(again)
    state = again.get_state()
    rest = iter(training_utterances(source, batch_size=2, seed=1))
    rest.set_state(state)
    for expected in first[1:]:
        for name, array in next(rest).items():
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"max_frames": 40}, ["HELLO WORLD", "IT'S ME"]),
        ({"max_units": 8}, ["IT'S ME", "A"]),
        ({"max_units": 1}, ["A"]),
    ],
)
def test_longer_utterances_are_left_out(librispeech, changes, left):
    source = load_source(config_of("librispeech", librispeech, **changes))
    examples, _ = source.split("train")
    assert [e.utterance.transcript for e in examples] == left
    assert source.left_out("train") == 3 - len(left)


def test_units_that_do_not_fit_into_the_frames_are_left_out(librispeech):
    """aaa needs a blank between two: five frames."""
    (examples, _) = load_source(config_of("librispeech", librispeech)).split("train")
    utterance = examples[0].utterance
    for frames, transcript, fits in ((5, "aaa", True), (4, "aaa", False), (4, "aba", True)):
        changed = speech.Utterance("x", transcript, frames, utterance.read)
        corpus = speech.SpeechCorpus("made", "none", 0, lambda _, u=changed: [u])
        source = SpeechSource(corpus, Characters(), max_frames=9, max_units=9)
        if fits:
            assert len(source.split("train")[0]) == 1
        else:
            with pytest.raises(DataError, match="none of the 1 utterances"):
                source.split("train")


def test_prompts():
    text = (
        "; Core sounds\n\nagent: Press 1, then * or #; 500 [tone].\nbeep: [a beep] (remark)\n"
        "followme/sorry.wav: I'm sorry\n"
    )
    said = speech.prompts(text)
    assert {name: normalize(x) for name, x in said.items()} == {
        "agent": "press one then star or pound 500",
        "beep": "",
        "followme/sorry": "i'm sorry",
    }


def test_no_transcript_is_in_two_splits(monkeypatch):
    names = [f"n{n}" for n in range(200)]
    transcripts = {
        name: f"Word {'abcdefghij'[n % 10]} {n % 50 // 10}" for n, name in enumerate(names)
    }
    transcripts["n0"], transcripts["n1"] = "", "word b 0!"
    utterances = [
        speech.Utterance(name, text, 1, lambda: np.zeros((1, 40), np.float32))
        for name, text in transcripts.items()
        if text
    ]
    monkeypatch.setattr(speech, "_asterisk_utterances", lambda: iter(utterances))
    corpus = speech.load_corpus(config_of("asterisk", ""))
    texts = {
        split: {normalize(u.transcript) for u in corpus.load(split)}
        for split in ("train", "validation", "test")
    }
    assert sum(len(corpus.load(split)) for split in texts) == 199
    assert all(texts.values())
    assert not texts["train"] & texts["validation"] and not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def sound_bytes(channels=1, rate=RATE, form="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone(0.3, rate=rate)] * channels, axis=1), rate, format=form)
    return file.getvalue()


SOUND = "train-a/1/2/1-2-0001.flac"
BROKEN = {
    "empty": (lambda: b"", "not a sound file, or damaged"),
    "text": (lambda: b"hello" * 100, "not a sound file, or damaged"),
    "stereo": (lambda: sound_bytes(channels=2), "2 channels; it must have one"),
    "rate": (
        lambda: sound_bytes(rate=16_000),
        r"16000 samples a second; config\.data\.sample_rate is 8000",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_sounds(librispeech, case):
    make, message = BROKEN[case]
    (librispeech / SOUND).write_bytes(make())
    source = load_source(config_of("librispeech", librispeech))
    with pytest.raises(DataError, match=rf"1-2-0001\.flac: {message}") as raised:
        source.split("train")
    assert "\n" not in str(raised.value)


def test_a_sound_that_is_cut_short(librispeech):
    """The header is whole, so it shows when the sound is read."""
    path = librispeech / SOUND
    path.write_bytes(path.read_bytes()[:2_000])
    source = load_source(config_of("librispeech", librispeech))
    examples, _ = source.split("train")
    with pytest.raises(DataError, match=r"1-2-0001\.flac: damaged") as raised:
        source.read(examples[1])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["WAV", "AIFF", "OGG", "NIST", "RF64"])
def test_a_header_that_says_more_than_there_is(kaldi, form):
    """libsndfile reads what is there, and the transcript no longer fits."""
    path = kaldi / "sounds/train-a/1-2-0001.wav"
    whole = sound_bytes(form=form)
    path.write_bytes(whole)
    config = config_of("kaldi", kaldi)
    assert len(load_source(config).split("train")[0]) == 3
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"1-2-0001\.wav: cut short \(") as raised:
        load_source(config).split("train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dataset", ["librispeech", "kaldi"])
def test_a_sound_in_two_splits(dataset, request):
    """By a link of either kind."""
    folder = request.getfixturevalue(dataset)
    sounds = sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".flac"))
    of_dev = next(p for p in sounds if "dev-a" in str(p))
    of_train = next(p for p in sounds if "train-a" in str(p))
    for link in (of_train.hardlink_to, of_train.symlink_to):
        of_train.unlink()
        link(of_dev)
        with pytest.raises(DataError, match=r"of the validation split is .* of the train split"):
            load_source(config_of(dataset, folder)).split("train")


def test_a_speaker_that_is_a_link_to_another(librispeech):
    (librispeech / "train-a" / "9").symlink_to(librispeech / "train-a" / "1")
    examples, _ = load_source(config_of("librispeech", librispeech)).split("train")
    assert len(examples) == 3


def test_a_file_that_is_gone(librispeech):
    with pytest.raises(DataError, match=r"gone\.flac: cannot be read"):
        filterbanks.read_file(epath.Path(librispeech / "gone.flac"), RATE)


def without_row(folder):
    table = folder / "train-a/1/2/1-2.trans.txt"
    table.write_text(table.read_text().replace("1-2-0001 IT'S ME\n", ""))


def with_row(folder):
    table = folder / "train-a/1/2/1-2.trans.txt"
    table.write_text(table.read_text() + "1-2-0009 MORE\n")


def twice(folder):
    table = folder / "train-a/1/2/1-2.trans.txt"
    table.write_text(table.read_text() + "1-2-0001 MORE\n")


def without_texts(folder):
    (folder / "train-a/1/2/1-2.trans.txt").unlink()


def without_sounds(folder):
    for path in (folder / "train-a/1/2").glob("*.flac"):
        path.unlink()


def without_chapters(folder):
    (folder / "train-a").rename(folder / "other")
    (folder / "train-a").mkdir()


def without_subset(folder):
    (folder / "train-a").rename(folder / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_row, r"1-2-0001\.flac: no transcript in .*1-2\.trans\.txt"),
        (with_row, r"1-2\.trans\.txt: no sound of 1-2-0009 in the folder"),
        (twice, r"1-2\.trans\.txt: two rows of 1-2-0001"),
        (without_texts, r"1/2: 3 sounds \(\.flac, \.wav\) and 0 \.trans\.txt"),
        (without_sounds, r"1/2: 0 sounds .* and 1 \.trans\.txt"),
        (without_chapters, r"train-a: no SPEAKER/CHAPTER folder in it"),
        (without_subset, r"train-a: no such folder; config\.data\.subsets\.train"),
    ],
)
def test_broken_librispeech(librispeech, change, message):
    change(librispeech)
    with pytest.raises(DataError, match=message) as raised:
        load_source(config_of("librispeech", librispeech)).split("train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("text", "1-2-0000 HELLO\n1-2-0001 A\n", r"train-a/text: no row of 1-2-0002"),
        ("wav.scp", "1-2-0000 a.wav\n", r"wav\.scp: no row of 1-2-0001"),
        ("wav.scp", "\n", r"wav\.scp: no utterance in it"),
        ("wav.scp", "", r"wav\.scp: the file is empty"),
        (
            "wav.scp",
            "1-2-0000 sph2pipe a |\n1-2-0001 b.wav\n1-2-0002 c.wav\n",
            r"wav\.scp: 1-2-0000 has no file; commands are not run",
        ),
        (
            "wav.scp",
            "1-2-0000 b.wav\n1-2-0001 b.wav\n1-2-0002 c.wav\n",
            r"b\.wav: cannot be read \(No such file",
        ),
    ],
)
def test_broken_kaldi(kaldi, file, content, message):
    (kaldi / "train-a" / file).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        load_source(config_of("kaldi", kaldi)).split("train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nope"}, r'config\.data\.dataset = "nope": unknown; use one of asterisk, lib'),
        ({"units": "words"}, r'config\.data\.units = "words": unknown; use one of characters, ph'),
        ({"sample_rate": 0}, r"config\.data\.sample_rate = 0: must be positive"),
        ({"max_frames": 0}, r"config\.data\.max_frames = 0"),
        ({"max_units": 0}, r"config\.data\.max_units = 0"),
        ({"path": ""}, r"config\.data\.path is empty: librispeech needs a folder of LibriSpeech"),
        ({"path": "nowhere"}, r"nowhere: no such file or folder"),
        ({"subsets": {}}, r'config\.data\.subsets has no folders of the split "train"'),
        (
            {"dataset": "asterisk", "path": "", "sample_rate": 16_000},
            r"sample_rate = 16000: asterisk has 8000",
        ),
        ({"dataset": "asterisk"}, r'config\.data\.path = ".*": asterisk reads no files from there'),
        ({"max_frames": 5}, r"none of the 3 utterances .* config\.data\.max_frames \(5\)"),
    ],
)
def test_mistakes(librispeech, changes, message):
    config = config_of("librispeech", librispeech)
    with config.unlocked():
        config.update(changes)
        if "subsets" in changes:
            config.subsets = ml_collections.ConfigDict(changes["subsets"])
    with pytest.raises(DataError, match=message) as raised:
        load_source(config).split("train")
    assert "\n" not in str(raised.value)


def test_unknown_split():
    with pytest.raises(DataError, match=r'unknown split "dev" of asterisk: use train, validation'):
        load_source(config_of("asterisk", "")).split("dev")
