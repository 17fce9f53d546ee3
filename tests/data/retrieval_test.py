"""Pairs of texts: AAN's files as the tests write them, and passages of works."""

import types

import numpy as np
import pytest
from etils import epath

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.data.retrieval import dataset as retrieval
from linear_transformer.data.sequence_batches import SequenceSource
from linear_transformer.errors import ConfigError
from tests.training import runs

SPLITS = ("train", "validation", "test")
FILES = ("new_aan_pairs.train.tsv", "new_aan_pairs.eval.tsv", "new_aan_pairs.test.tsv")
ROWS = (
    b'0.0\tP1\tP2\t"a quote\tthat stays open\n'
    b"1.0\tP3\tP4\tcomma, 'single'\t\xc3\xa9 \xff\x00 end\r\n"
    b"1\tP5\tP6\tc\td"
)
CONTENTS = {name: ROWS.replace(b"P6", b"P%d" % n) for n, name in enumerate(FILES, 7)}
PAIRS = [(b'"a quote', b"that stays open"), (b"comma, 'single'", b"\xc3\xa9 \xff\0 end")]
PAIRS += [(b"c", b"d")]


def config(path=""):
    return types.SimpleNamespace(dataset="", path=str(path))


def pairs(source, split):
    """The bytes of both texts, and the labels, of a split."""
    items, labels = source.split(split)
    read = [source.read(item) for item in items]
    return [tuple((ids - 1).astype(np.uint8).tobytes() for ids in p) for p in read], labels.tolist()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where the places of texts are kept."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(folder))
    return folder


@pytest.fixture
def aan(tmp_path, cache):
    del cache
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("inside", ["", "tsv_data", "lra_release/lra_release/tsv_data"])
def test_aan(tmp_path, inside):
    """Quotes, commas and bytes that are no UTF-8 are text; the last line may lack its end."""
    folder = tmp_path / "data" / inside
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    source = retrieval.load_aan(config(tmp_path / "data"))
    assert isinstance(source, SequenceSource)
    assert (source.sequences_per_example, source.num_classes, source.vocab_size) == (2, 2, 257)
    for split in SPLITS:
        assert pairs(source, split) == (PAIRS, [0, 1, 1])
    with pytest.raises(DataError, match='unknown split "eval" of aan'):
        source.split("eval")


def test_places_are_kept(aan, cache, monkeypatch):
    """A file is gone through once, and again when it has changed."""
    expected = pairs(retrieval.load_aan(config(aan)), "test")
    assert len(list(cache.glob("aan-*.npz"))) == len(FILES)
    index = retrieval._index
    calls = []

    def counted(path):
        calls.append(path.name)
        return index(path)

    monkeypatch.setattr(retrieval, "_index", counted)
    assert pairs(retrieval.load_aan(config(aan)), "test") == expected
    assert not calls
    (aan / FILES[2]).write_bytes(b"1.0\tP1\tP2\tlonger\ttexts\n" + ROWS)
    assert pairs(retrieval.load_aan(config(aan)), "test") == (
        [(b"longer", b"texts"), *PAIRS],
        [1, 0, 1, 1],
    )
    assert calls == [FILES[2]]


BROKEN_ROWS = {
    "few columns": (b"1.0\tP1\tP2\ttext", "4 columns; expected label, id1, id2, text1, text2"),
    "a tab in a text": (b"1.0\tP1\tP2\ta\tb\tc", "6 columns; expected"),
    "blank line": (b"", "1 columns; expected"),
    "label": (b"2.0\tP1\tP2\ta\tb", 'label "2.0"; must be 0.0 or 1.0'),
    "header": (b"label\tid1\tid2\ttext1\ttext2", 'label "label"; must be'),
    "no UTF-8": (b"\xff\tP1\tP2\ta\tb", r'label "\\xff"; must be'),
    "first text": (b"1.0\tP1\tP2\t\tb", "text1 is empty"),
    "second text": (b"1.0\tP1\tP2\ta\t", "text2 is empty"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_broken_row(aan, case):
    row, message = BROKEN_ROWS[case]
    (aan / FILES[1]).write_bytes(ROWS + b"\n" + row + b"\n")
    with pytest.raises(DataError, match=f"{FILES[1]}: row 4: .*{message}") as raised:
        retrieval.load_aan(config(aan))
    assert "\n" not in str(raised.value)


def test_missing_files(aan, tmp_path):
    (aan / FILES[1]).write_bytes(b"")
    with pytest.raises(DataError, match=f"{FILES[1]}: the file is empty"):
        retrieval.load_aan(config(aan))
    (aan / FILES[1]).unlink()
    with pytest.raises(DataError, match=f"{FILES[1]}: cannot be read .No such file"):
        retrieval.load_aan(config(aan))
    (aan / FILES[1]).mkdir()
    with pytest.raises(DataError, match=f"{FILES[1]}: cannot be read .Is a directory"):
        retrieval.load_aan(config(aan))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"config.data.path = .*empty: no {FILES[0]} in it"):
        retrieval.load_aan(config(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"none: no such file or folder; config\.data\.path"):
        retrieval.load_aan(config(tmp_path / "none"))
    with pytest.raises(DataError, match=r"config\.data\.path is empty: aan needs"):
        retrieval.load_aan(config())


@pytest.fixture(scope="module")
def works():
    """Thirteen of random bytes, one of them short."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(13):
        size = 8_000 if number == 5 else 4 * int(rng.integers(10_000, 15_000))
        made.append(rng.integers(256, size=size, dtype=np.uint8))
    return made


def places(source, works, split):
    """Work and first byte, there, of each passage: (N, 2) both."""
    items, _ = source.split(split)
    long = np.array([number for number, work in enumerate(works) if work.size >= 40_000])
    sizes = np.array([works[number].size for number in long])
    ends = np.cumsum(sizes)
    starts, stops = items[..., 1], items[..., 2]
    assert (stops - starts == retrieval.PASSAGE_BYTES).all()
    which = np.searchsorted(ends, starts, side="right")
    np.testing.assert_array_equal(which, np.searchsorted(ends, stops - 1, side="right"))
    return long[which], starts - (ends - sizes)[which]


def test_passages(works):
    """Labels are right, no work is in two splits, and passages of one work do not overlap."""
    source = retrieval.pair_passages(works, 2_000)
    assert isinstance(source, SequenceSource)
    assert (source.sequences_per_example, source.num_classes) == (2, 2)
    seen = {}
    for split, count in zip(SPLITS, (2_000, 200, 200), strict=True):
        labels = source.labels[split]
        assert labels.size == count and labels.sum() == count // 2
        which, first = places(source, works, split)
        np.testing.assert_array_equal(which[:, 0] == which[:, 1], labels == 1)
        distance = np.abs(first[:, 0] - first[:, 1])[labels == 1]
        assert distance.min() >= retrieval.PASSAGE_BYTES
        seen[split] = set(which.flat)
        texts = source.read(source.spans[split][0])
        for ids, number, start in zip(texts, which[0], first[0], strict=True):
            text = works[number][start : start + retrieval.PASSAGE_BYTES]
            np.testing.assert_array_equal(ids, text.astype(np.int32) + 1)
    assert seen == {"train": {1, 2, 4, 6, 8, 9, 11, 12}, "validation": {3, 10}, "test": {0, 7}}


def test_one_passage_tells_nothing(works):
    """Works and places have one distribution for both labels, in either tower."""
    source = retrieval.pair_passages(works, 40_000)
    which, first = places(source, works, "train")
    share = first / np.array([work.size for work in works])[which]
    labels = source.labels["train"]
    for tower in range(2):
        counts = [np.bincount(which[labels == y, tower], minlength=13) / 20_000 for y in (0, 1)]
        # Eight works: standard deviation of a difference of shares 0.0033.
        np.testing.assert_allclose(counts[0], counts[1], atol=0.015)
        quantiles = [np.quantile(share[labels == y, tower], (0.1, 0.25, 0.5, 0.75)) for y in (0, 1)]
        np.testing.assert_allclose(quantiles[0], quantiles[1], atol=0.03)


def test_passages_are_the_same_every_time(works):
    one, two = (retrieval.pair_passages(works, 50) for _ in range(2))
    for split in SPLITS:
        np.testing.assert_array_equal(one.spans[split], two.spans[split])
    assert len({one.spans[split].tobytes() for split in SPLITS}) == len(SPLITS)


@pytest.mark.usefixtures("cache")
def test_round_trip(works, tmp_path):
    """Written as AAN's files and read: the same texts, with blanks for tabs and ends of lines."""
    source = retrieval.pair_passages(works, 30)
    folder = epath.Path(tmp_path / "out" / "aan")
    retrieval.write_tsv(source, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    read = retrieval.load_aan(config(folder))
    blank = bytes.maketrans(b"\t\n\r", b"   ")
    for split in SPLITS:
        expected, labels = pairs(source, split)
        expected = [tuple(text.translate(blank) for text in pair) for pair in expected]
        assert pairs(read, split) == (expected, labels)


def test_folder_that_cannot_be_written(works, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--out=.*file/aan: cannot be written \(Not a directory"):
        retrieval.write_tsv(retrieval.pair_passages(works, 2), epath.Path(tmp_path / "file/aan"))


@pytest.mark.parametrize("argument", ["", "--out=x --pairs=1"])
def test_wrong_flags(argument):
    result = runs.execute(["-m", "linear_transformer.data.retrieval", *argument.split()])
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_shakespeare():
    """Needs the network, once."""
    try:
        source = retrieval.load_passages(config())
    except FetchError as error:
        pytest.skip(str(error))
    assert [source.labels[split].size for split in SPLITS] == [20_000, 2_000, 2_000]
    assert all(source.labels[split].mean() == 0.5 for split in SPLITS)
    spans = {split: source.spans[split] for split in SPLITS}
    assert {split: len(np.unique(spans[split], axis=0)) for split in SPLITS} == {
        "train": 20_000,
        "validation": 2_000,
        "test": 2_000,
    }
