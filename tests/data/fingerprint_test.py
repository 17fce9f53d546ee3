"""Fingerprints: equal for equal data, wherever they are; different for any change."""

import os
import types

import ml_collections
import numpy as np
import pytest

from linear_transformer.data import load_corpus
from linear_transformer.data.errors import DataError
from linear_transformer.data.io import fingerprint
from linear_transformer.data.io.fingerprint import fingerprints, of_files
from linear_transformer.data.text import embedded


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def of(path):
    return of_files(fingerprint.epath.Path(path))


def test_any_change_of_files_is_seen(tmp_path):
    files = {"a": "one", "b": "two", "c": ""}
    whole = of(write(tmp_path / "0", **files))
    assert of(write(tmp_path / "1", **files)) == whole
    (tmp_path / "1" / ".hidden").write_text("x")
    assert of(tmp_path / "1") == whole
    run = write(tmp_path / "1" / "run")
    (run / "config.json").write_text("{}")
    (run / "environment.json").write_text("{}")
    assert of(tmp_path / "1") == whole  # where a run lies beside its data
    (tmp_path / "1" / "environment.json").write_text("{}")
    assert of(tmp_path / "1") != whole  # a file of the data that only has the name
    changes = [{"a": "onE"}, {"a": "oneone"}, {"c": "x"}, {"d": ""}]
    found = [of(write(tmp_path / f"c{n}", **files | new)) for n, new in enumerate(changes)]
    renamed = of(write(tmp_path / "r", z="one", b="two", c=""))
    moved = of(write(tmp_path / "m", a="onetwo", b="", c=""))
    fewer = of(write(tmp_path / "f", a="one", b="two"))
    assert len({whole, *found, renamed, moved, fewer}) == 8
    (tmp_path / "0" / "folder").mkdir()
    os.rename(tmp_path / "0" / "a.txt", tmp_path / "0" / "folder" / "a.txt")
    assert of(tmp_path / "0") != whole


def test_of_large_sets_sizes_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_MOST_BYTES", 5)
    whole = of(write(tmp_path / "0", a="one", b="two"))
    assert of(write(tmp_path / "1", a="onE", b="two")) == whole
    assert of(write(tmp_path / "2", a="one", b="twos")) != whole


def test_a_file_that_cannot_be_read(tmp_path):
    folder = write(tmp_path / "0", a="one")
    with pytest.raises(DataError, match="cannot be read"):
        of(folder / "b.txt")


def config(**values):
    return ml_collections.ConfigDict({"dataset": "x", "path": "", "tokenizer": "bytes"} | values)


def test_what_is_compared(tmp_path):
    """The files where there are any, else the corpus, else what is read first."""
    text = write(tmp_path / "text", a="one")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    assert fingerprints(config(path=str(text), tokenizer=str(tokenizer)), None) == {
        "config.data.path": of(text),
        "config.data.tokenizer": of(tokenizer),
    }
    corpus = load_corpus(config(dataset="embedded"))
    task = types.SimpleNamespace(corpus=corpus)
    assert fingerprints(config(), task) == {"config.data.dataset": corpus.fingerprint()}

    def generated(inputs, frames):
        batch = {"inputs": np.array(inputs), "frames": np.array(frames)}
        return types.SimpleNamespace(training_data=lambda index, count: [batch])

    first = fingerprints(config(), generated([1, 2], [0.5]))
    assert list(first) == ["config.data.dataset"]
    assert fingerprints(config(), generated([1, 2], [0.6])) == first
    assert fingerprints(config(), generated([1, 3], [0.5])) != first


def test_the_embedded_text_is_this_one():
    """The same under every version of Python."""
    corpus = embedded.load(config())
    assert sum(corpus.num_bytes.values()) == 3_859_985
    assert (
        corpus.fingerprint() == "8a3d15018a63734ec4055dc1f92bbec0acde83553032c38e438f1fc659bb9022"
    )
