"""Labelled texts: a small aclImdb, and wheels and an archive that the tests write."""

import csv
import io
import itertools
import tarfile
import types
import zipfile

import numpy as np
import pytest

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.data.labelled import labelled_text
from linear_transformer.data.sequence_batches import SequenceSource
from linear_transformer.data.text.byte_texts import cut, drop_repeats, pack

SPLITS = ("train", "validation", "test")


def config(path=""):
    return types.SimpleNamespace(dataset="", path=str(path))


def texts(source, split):
    """The bytes and labels of a split, in the order of both."""
    items, labels = source.split(split)
    read = [source.read(item) for item in items]
    assert all(len(ids) == 1 for ids in read)
    read = [(ids[0] - 1).astype(np.uint8).tobytes() for ids in read]
    return sorted(zip(read, labels.tolist(), strict=True))


def check_splits(source):
    """It is a source, its ids are bytes + 1, and no text is in two splits, white space aside."""
    assert isinstance(source, SequenceSource)
    assert source.vocab_size == 257 and source.sequences_per_example == 1
    found = {}
    for split in SPLITS:
        items, labels = source.split(split)
        assert len(items) == len(labels) > 0
        assert set(np.unique(labels)) <= set(range(source.num_classes))
        for item in items:
            (ids,) = source.read(item)
            assert ids.min() >= 1 and ids.max() <= 256
        found[split] = {b" ".join(text.split()) for text, _ in texts(source, split)}
    assert not found["train"] & found["validation"]
    assert not (found["train"] | found["validation"]) & found["test"]


@pytest.fixture
def acl_imdb(tmp_path):
    """20 + 5 reviews a class, numbered so that names and numbers have different orders."""
    for half, count in (("train", 20), ("test", 5)):
        for name in ("neg", "pos"):
            folder = tmp_path / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}_7.txt").write_bytes(f"{half} {name} {number} é".encode())
    (tmp_path / "train" / "neg" / "urls.csv").write_bytes(b"not a review")
    return tmp_path


def test_official_imdb(acl_imdb):
    source = labelled_text.load_imdb(config(acl_imdb))
    check_splits(source)
    expected = {"train": range(18), "validation": range(18, 20), "test": range(5)}
    for split, numbers in expected.items():
        half = "test" if split == "test" else "train"
        reviews = [
            (f"{half} {name} {number} é".encode(), label)
            for label, name in enumerate(("neg", "pos"))
            for number in numbers
        ]
        assert texts(source, split) == sorted(reviews)


def test_official_test_half_stays_whole(acl_imdb):
    """A review of the test half that is in the train half too is taken out of the latter."""
    repeated = (acl_imdb / "test" / "pos" / "3_7.txt").read_bytes()
    (acl_imdb / "train" / "pos" / "4_7.txt").write_bytes(b" " + repeated + b"\n")
    source = labelled_text.load_imdb(config(acl_imdb))
    check_splits(source)
    assert [len(source.labels[split]) for split in SPLITS] == [35, 4, 10]


def remove_half(folder):
    (folder / "test").rename(folder / "other")
    return "no such folder; .*Parquet files are not read"


def remove_reviews(folder):
    for file in (folder / "train" / "pos").iterdir():
        file.unlink()
    return r"train/pos: no \.txt file in it"


def empty_review(folder):
    (folder / "test" / "neg" / "2_7.txt").write_bytes(b"")
    return r"2_7\.txt: the file is empty"


def folder_for_review(folder):
    (folder / "test" / "neg" / "9_7.txt").mkdir()
    return r"9_7\.txt: cannot be read"


def few_reviews(folder):
    """One a class, which the validation split gets."""
    for name in ("neg", "pos"):
        for number in range(1, 20):
            (folder / "train" / name / f"{number}_7.txt").unlink()
    return "imdb: too few texts, the train split is empty"


@pytest.mark.parametrize(
    "change", [remove_half, remove_reviews, empty_review, folder_for_review, few_reviews]
)
def test_broken_imdb(acl_imdb, change):
    message = change(acl_imdb)
    with pytest.raises(DataError, match=message) as raised:
        labelled_text.load_imdb(config(acl_imdb))
    assert "\n" not in str(raised.value)


def test_no_such_path(tmp_path):
    with pytest.raises(DataError, match=r"none: no such .*config\.data\.path must be the unpacked"):
        labelled_text.load_imdb(config(tmp_path / "none"))


def wheel(path, tables):
    """A zip of tables, each a list of rows, and what is between their columns."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, (rows, delimiter) in tables.items():
            text = io.StringIO(newline="")
            csv.writer(text, delimiter=delimiter).writerows(rows)
            archive.writestr(name, text.getvalue())
    return path


def test_carved_imdb(tmp_path):
    """Blocks of each class; quotes, commas, lines and long texts come through; repeats go."""
    rows = [["text", "label", "source"], ["short", "0", "rotten_tomatoes"]]
    rows += [[f"bad {n}", "0", "imdb"] for n in range(50)]
    rows += [[f'"good", {n}\nsaid é' + "x" * 200_000 * (n == 9), "1", "imdb"] for n in range(50)]
    rows[2 + 45][0] = rows[2 + 3][0]  # a train text again in the test block
    rows[2 + 38][0] = rows[2 + 4][0] + " "  # and in the validation block
    path = wheel(tmp_path / "reviews.whl", {labelled_text._REVIEWS: (rows, ",")})
    source = labelled_text._carved_imdb(path)
    check_splits(source)
    assert [len(source.labels[split]) for split in SPLITS] == [72, 7, 19]
    assert texts(source, "train") == sorted(
        (text.encode(), int(label)) for text, label, _ in [*rows[2:38], *rows[52:88]]
    )
    assert ('"good", 49\nsaid é'.encode(), 1) in texts(source, "test")


def test_newsgroups(tmp_path):
    """Three rows of header, an empty row in the end, classes in the order of their names."""
    tables = {}
    for part, count in (("train", 10), ("test", 4)):
        rows = [["Category", "Text"], ["d", "string"], ["class", ""]]
        for name in ("sci.space", "alt.atheism"):
            rows += [[name, f"{part} {name} {number}"] for number in range(count)]
        tables[labelled_text._NEWSGROUPS.format(part)] = ([*rows, []], "\t")
    source = labelled_text._newsgroups(wheel(tmp_path / "news.whl", tables))
    check_splits(source)
    assert source.num_classes == 2
    assert texts(source, "validation") == [(b"train alt.atheism 9", 0), (b"train sci.space 9", 1)]
    assert np.bincount(source.labels["train"]).tolist() == [9, 9]
    assert np.bincount(source.labels["test"]).tolist() == [4, 4]


def test_spam(tmp_path):
    """Bodies without headers; the class is that of the inner folder."""
    path = tmp_path / "mail.tgz"
    folders = ("spam-1", "easy-ham-1")
    with tarfile.open(path, "w:gz") as archive:
        for folder in folders:
            for number in reversed(range(10)):
                body = f"\n{folder} mail {number}\n\nend".encode() + b"\xff\0"
                mail = b"From: x\r\nSubject: spam\r\n\r\n" + body
                name = f"package/spam-assassin/data/{folder}/{number:05}.0a.txt"
                for member, data in ((name, mail), (name.replace("txt", "json"), b"{}")):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    source = labelled_text._spam(path)
    check_splits(source)
    assert texts(source, "validation") == [
        (b"\neasy-ham-1 mail 8\n\nend\xff\0", 0),
        (b"\nspam-1 mail 8\n\nend\xff\0", 1),
    ]
    assert [len(source.labels[split]) for split in SPLITS] == [16, 2, 2]


def test_unknown_split():
    examples = {split: [(split.encode(), 0)] for split in SPLITS}
    source = pack("some", "", 1, examples)
    with pytest.raises(DataError, match='unknown split "dev" of some: use train, validation, test'):
        source.split("dev")


def test_order_is_mixed():
    """The first hundred of a thousand examples in two blocks have both classes, as many of each.

    The standard deviation of their number is 4.7.
    """
    examples = {split: [(b"%d" % n, int(n >= 500)) for n in range(1000)] for split in SPLITS}
    one, two = (pack("some", "", 2, examples) for _ in range(2))
    assert texts(one, "test") == sorted(examples["test"])
    assert 30 < one.labels["test"][:100].sum() < 70
    np.testing.assert_array_equal(one.spans["test"], two.spans["test"])


def test_cut():
    examples = [(bytes([n]), n) for n in range(25)]
    blocks = cut(examples, {"train": 80, "validation": 8, "test": 12})
    assert [len(blocks[split]) for split in SPLITS] == [20, 2, 3]
    assert [*itertools.chain(*blocks.values())] == examples


def test_drop_repeats():
    examples = {"train": [(b"a b", 0), (b"a b", 0), (b"c", 1)], "test": [(b"a\n b", 0), (b"d", 1)]}
    kept = drop_repeats(examples, ("train", "test"))
    assert kept == {"train": examples["train"], "test": [(b"d", 1)]}
    kept = drop_repeats(examples, ("test", "train"))
    assert kept == {"train": [(b"c", 1)], "test": examples["test"]}


PUBLISHED = {
    "imdb": (labelled_text.load_imdb, (18_000, 1_991, 4_982), 2),
    "newsgroups": (labelled_text.load_newsgroups, (10_149, 1_137, 7_528), 20),
    "spam": (labelled_text.load_spam, (4_836, 593, 601), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_fetched(name):
    """Needs the network, once."""
    load, sizes, num_classes = PUBLISHED[name]
    try:
        source = load(config())
    except FetchError as error:
        pytest.skip(str(error))
    check_splits(source)
    assert (source.name, source.num_classes) == (name, num_classes)
    assert tuple(len(source.labels[split]) for split in SPLITS) == sizes
    for split in SPLITS:
        assert len(np.unique(source.labels[split])) == num_classes
