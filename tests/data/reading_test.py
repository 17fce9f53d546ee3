"""Files that users supply: each is read once, and nothing is inflated beyond its limit."""

import gzip
import io
import os
import types
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from linear_transformer.data import DataError, load_corpus
from linear_transformer.data.images import datasets as images, image_folder
from linear_transformer.data.io import reading
from linear_transformer.data.io.array_cache import cached_arrays
from linear_transformer.data.labelled import labelled_text
from linear_transformer.data.listops import dataset as listops
from linear_transformer.data.music import midi, piano
from linear_transformer.data.pathfinder.dataset import _read_metadata
from linear_transformer.data.retrieval import dataset as retrieval
from linear_transformer.data.text import wikitext103


def config_of(dataset, path, **more):
    return types.SimpleNamespace(dataset=dataset, path=str(path), tokenizer="bytes", **more)


def fails(message, call, *arguments):
    with pytest.raises(DataError, match=message) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)


def names(folder, **options):
    return sorted(p.name for p in reading.files_below(epath.Path(folder), **options))


@pytest.fixture
def texts(tmp_path):
    """24 documents in two folders."""
    for number in range(24):
        folder = tmp_path / "text" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.txt").write_text(f"document {number} " * 9)
    return tmp_path / "text"


def link_to_itself(folder):
    (folder / "all").symlink_to(folder)


def link_to_a_neighbour(folder):
    (folder / "0" / "other").symlink_to(folder / "1")
    (folder / "1" / "other").symlink_to(folder / "0")


def links_to_a_file(folder):
    (folder / "00.txt").symlink_to(folder / "0" / "02.txt")
    (folder / "aa.txt").hardlink_to(folder / "1" / "03.txt")


def hidden_link(folder):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a").hardlink_to(folder / "1" / "03.txt")


def copies(folder):
    (folder / "1" / "copy.txt").write_bytes((folder / "0" / "02.txt").read_bytes())


def pipe(folder):
    os.mkfifo(folder / "1" / "pipe.txt")


def link_to_nothing(folder):
    (folder / "gone.txt").symlink_to(folder / "nowhere")


LINKS = (link_to_itself, link_to_a_neighbour, links_to_a_file, hidden_link, copies, link_to_nothing)
LINKS += (pipe,)


@pytest.mark.parametrize("change", LINKS)
def test_every_text_is_one_document(texts, change):
    expected = load_corpus(config_of("local_text", texts))
    change(texts)
    corpus = load_corpus(config_of("local_text", texts))
    found = [d.tobytes() for split in corpus.splits.values() for d in split]
    assert len(found) == len(set(found)) == 24
    if change is not links_to_a_file:  # a hard link has no other name than its own
        assert corpus.fingerprint() == expected.fingerprint()


def test_splits_that_are_one_file(tmp_path):
    (tmp_path / "train.txt").write_text("some words")
    (tmp_path / "valid.txt").write_text("others")
    (tmp_path / "test.txt").hardlink_to(tmp_path / "train.txt")
    config = config_of("local_text", tmp_path)
    fails(r"test\.txt of the test split is .*train\.txt of the train split", load_corpus, config)
    (tmp_path / "test.txt").unlink()
    (tmp_path / "test.txt").write_text("some words")
    message = r"test\.txt of the test split is a copy of .*train\.txt of the train split"
    fails(message, load_corpus, config)
    (tmp_path / "validation.txt").write_text("more")
    fails(r"has validation\.txt and valid\.txt; one of them must be", load_corpus, config)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        fails(f"{path}: not a regular file", load_corpus, config_of("local_text", path))
        fails("not a regular file", reading.read_file, epath.Path(path))
    for name in ("train", "val", "test"):
        (tmp_path / f"basic_{name}.tsv").symlink_to(tmp_path / "pipe")
    fails("not a regular file", listops.load, config_of("listops", tmp_path))


def test_a_folder_that_cannot_be_read(texts, monkeypatch):
    """As root every folder can be, so the system's answer is made here."""
    closed = str(texts / "1")
    scandir, listdir = os.scandir, os.listdir

    def refuse(system):
        def call(path):
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", path)
            return system(path)

        return call

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "listdir", refuse(listdir))
    config = config_of("local_text", texts)
    fails(rf"{closed}: the folder cannot be read \(Permission denied\)", load_corpus, config)


def test_a_path_of_another_file_system():
    config = config_of("local_text", "https://example.com/texts")
    fails("https://example.com/texts: cannot be read", load_corpus, config)


def test_pieces_of_music(tmp_path):
    for number in range(4):
        notes = np.zeros(5, midi.NOTE)
        notes["onset"], notes["duration"] = np.arange(5), 0.5
        notes["pitch"], notes["velocity"] = 40 + number, 64
        midi.write_notes(epath.Path(tmp_path / f"{number}.mid"), notes)
    config = config_of("midi_folder", tmp_path)
    assert sum(map(len, piano.load_folder(config).splits.values())) == 4
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "5.mid").write_bytes((tmp_path / "1.mid").read_bytes())
    (tmp_path / "6.mid").hardlink_to(tmp_path / "2.mid")
    assert sum(map(len, piano.load_folder(config).splits.values())) == 4


def test_images_of_two_splits(tmp_path):
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (4, 4)).save(tmp_path / part / label / f"{number}.png")
    config = config_of("image_folder", tmp_path, image_size=4)
    (tmp_path / "train" / "a" / "2.png").hardlink_to(tmp_path / "val" / "a" / "0.png")
    (tmp_path / "train" / "a" / "3.png").symlink_to(tmp_path / "train" / "a" / "0.png")
    source = image_folder.load(config)
    assert {split: len(files) for split, files in source.files.items()} == {
        "train": 4,
        "validation": 4,
    }
    for path in (tmp_path / "train" / "b").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "val" / "b" / path.name)
    fails(r"train/b: no .* file that is not in another class or split", image_folder.load, config)


def test_reviews(tmp_path):
    for half in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / half / name).mkdir(parents=True)
            for number in range(10):
                (tmp_path / half / name / f"{number}_1.txt").write_text(f"{half} {name} {number}")
    (tmp_path / "train" / "neg" / "77_1.txt").hardlink_to(tmp_path / "train" / "neg" / "0_1.txt")
    (tmp_path / "train" / "pos" / "78_1.txt").symlink_to(tmp_path / "test" / "pos" / "0_1.txt")
    source = labelled_text.load_imdb(config_of("imdb", tmp_path))
    assert {split: len(rows) for split, rows in source.spans.items()} == {
        "train": 18,
        "validation": 2,
        "test": 20,
    }


def test_tables_of_two_splits(tmp_path):
    (tmp_path / "basic_train.tsv").write_text(f"{listops.HEADER}\n[MAX 1 2 ]\t2\n")
    (tmp_path / "basic_val.tsv").hardlink_to(tmp_path / "basic_train.tsv")
    (tmp_path / "basic_test.tsv").symlink_to(tmp_path / "basic_train.tsv")
    fails("of the validation split is", listops.load, config_of("listops", tmp_path))


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (listops.load, ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv")),
        (retrieval.load_aan, tuple(f"new_aan_pairs.{n}.tsv" for n in ("train", "eval", "test"))),
        (wikitext103.load, tuple(f"wiki.{n}.tokens" for n in ("train", "valid", "test"))),
        (images.DATASETS["mnist"], ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")),
        (images.DATASETS["cifar10"], ("data_batch_1.bin", "test_batch.bin")),
    ],
)
def test_a_copy_in_another_split(tmp_path, load, names):
    """The scores of a test would be those of the training data."""
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"%d" % (number % 2))
    (tmp_path / names[-1]).write_bytes(b"0")
    config = str(tmp_path) if load in images.DATASETS.values() else config_of("", tmp_path)
    fails(rf"{names[-1]} of the test split is a copy of .*{names[0]} of the train", load, config)


def test_a_file_that_becomes_shorter(tmp_path):
    """It is read, not mapped: a mapped one would end the process without a message."""
    path = tmp_path / "a.tsv"
    path.write_bytes(b"0123456789")
    file = retrieval._File(epath.Path(path))
    assert file[2:5].tobytes() == b"234"
    path.write_bytes(b"0123")
    fails(r"a\.tsv: is shorter than it was", file.__getitem__, slice(2, 5))


def test_zip_members(tmp_path):
    path = epath.Path(tmp_path / "a.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/text", bytes(10**6))
    assert len(path.read_bytes()) < 10**4
    assert reading.read_zip_member(path, "text") == bytes(10**6)
    message = r"a\.zip: member text has 1,000,000 bytes or more; at most 999,999 are inflated"
    fails(message, reading.read_zip_member, path, "text", 999_999)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the mark of encryption, in directory and header
    data[6] |= 1
    path.write_bytes(bytes(data))
    fails(
        r"a\.zip: member text is encrypted",
        reading.read_zip_member,
        path,
        "text",
    )


def test_gzip():
    data = gzip.compress(bytes(1000)) + gzip.compress(b"more")
    assert reading.gunzip(data, "a.gz") == bytes(1000) + b"more"
    fails("a.gz has .* at most 1,003 are inflated", reading.gunzip, data, "a.gz", 1003)
    fails("a.gz: cannot be unzipped", reading.gunzip, data[:-9], "a.gz")
    fails("a.gz: cannot be unzipped", images.parse_idx, data[:20] + b"x" * 30, "a.gz")


def test_arrays_whose_header_says_more(tmp_path, monkeypatch):
    """Nothing is allocated for 10^12 rows."""
    file = io.BytesIO()
    header = {"descr": "<U10", "fortran_order": False, "shape": (10**12, 11)}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(b"some")
    path = epath.Path(tmp_path / "1.npy")
    path.write_bytes(file.getvalue())
    fails(
        r"1\.npy: a damaged array \(4 bytes of data, and its header says 440000000000000",
        _read_metadata,
        path,
    )
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "cached.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue())
    (made,) = cached_arrays("cached.npz", lambda: [np.arange(3)])
    np.testing.assert_array_equal(made, np.arange(3))


def test_a_tokenizer_without_its_unknown_token(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": '
        '{"document": 0}, "unk_token": "[UNK]"}, "pre_tokenizer": {"type": "Whitespace"}}'
    )
    (tmp_path / "a.txt").write_text("document 1 " * 30)
    config = config_of("local_text", tmp_path / "a.txt")
    config.tokenizer = str(path)
    fails(r"tokenizer\.json: the tokenizer cannot encode \(.*UNK", load_corpus, config)
