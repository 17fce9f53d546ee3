"""Curves of runs: what is read, what is said of a mistake, and the picture."""

import json

import pytest
from etils import epath

from linear_transformer.errors import ConfigError, UserError
from linear_transformer.reports import curves


@pytest.fixture
def runs(tmp_path):
    for name, accuracy in (("a", 0.25), ("b", 0.75)):
        (tmp_path / name).mkdir()
        records = [
            {"step": 10, "split": "train", "accuracy": 0.0},
            {"step": 10, "split": "validation", "accuracy": 0.1},
            {"step": 20, "split": "validation", "accuracy": accuracy, "accuracy_at_64": 0.5}
            | {"accuracy_at_128": accuracy},
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def test_curves_by_step_and_by_length(runs):
    read = curves.read_runs([f"{runs}/*"], "validation")
    assert list(read) == ["a", "b"]
    assert curves.by_step(read["a"], "accuracy") == [(10, 0.1), (20, 0.25)]
    assert curves.by_length(read["b"], "accuracy") == [(64, 0.5), (128, 0.75)]


def test_table_and_picture(runs):
    read = curves.read_runs([f"{runs}/*"], "validation")
    steps = {name: curves.by_step(records, "accuracy") for name, records in read.items()}
    assert curves.markdown(steps, "step").splitlines()[2] == "| a | 20 | 0.2500 |"
    lengths = {name: curves.by_length(records, "accuracy") for name, records in read.items()}
    lengths["a"] = lengths["a"][:1]
    assert curves.markdown(lengths, "length").splitlines() == [
        "| run | 64 | 128 |",
        "| --- | ---: | ---: |",
        "| a | 0.5000 |  |",
        "| b | 0.5000 | 0.7500 |",
    ]
    curves.plot(lengths, "length", "accuracy", epath.Path(runs / "c.png"))
    assert (runs / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_by_option(runs):
    """Of two lengths with one value, the longer."""
    record = {"accuracy_at_length_64_pairs_8": 0.5, "accuracy_at_length_64_pairs_4": 0.75}
    record |= {"accuracy_at_length_128_pairs_8": 0.25, "accuracy_at_length_64_depth_1": 0.1}
    assert curves.by_option([record], "accuracy", "pairs") == [(4, 0.75), (8, 0.25)]


def test_the_picture_explains_itself(runs, monkeypatch):
    """A title, a short name at the end of each curve, and the value of guessing."""
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, _: drawn.append(figure))
    points = [(64, 0.75), (128, 0.5)]
    names = ["parity-delta_net", "parity-delta_net-negative", "parity-gla"]
    curves.plot(dict.fromkeys(names, points), "length", "accuracy", epath.Path("c.png"), 0.5)
    [axes] = drawn[0].axes
    assert drawn[0].get_suptitle() == "parity"
    assert axes.get_legend() is None  # it would cover curves
    labels = {text.get_text() for text in axes.texts}
    assert labels == {"delta_net", "delta_net-negative", "gla", "chance"}


def test_the_metric_of_a_language_model(runs):
    assert curves.headline(curves.read_runs([f"{runs}/*"], "validation")) == "accuracy"
    byte = {"run": [{"step": 1, "loss": 0.7, "bits_per_byte": 1.0}]}
    assert curves.headline(byte) == "bits_per_byte"
    with pytest.raises(ConfigError, match="--metric: run, other have none of accuracy"):
        curves.headline(byte | {"other": [{"step": 1, "accuracy": 0.5}]})


def test_runs_with_one_name_are_all_there(runs):
    (runs / "other").mkdir()
    (runs / "a").rename(runs / "other" / "b")
    read = curves.read_runs([f"{runs}/b", f"{runs}/other/*"], "validation")
    assert {name: curves.by_step(r, "accuracy")[-1] for name, r in read.items()} == {
        f"{runs}/b": (20, 0.75),
        f"{runs}/other/b": (20, 0.25),
    }


def test_mistakes(runs):
    assert curves.by_step([{"step": 1, "split": "validation"}], "split") == []
    with pytest.raises(ConfigError, match="no such folder"):
        curves.read_runs([f"{runs}/x*"], "validation")
    with pytest.raises(ConfigError, match="no metrics of the split test"):
        curves.read_runs([f"{runs}/a"], "test")
    with pytest.raises(UserError, match="cannot be written"):
        curves.plot({"a": [(1, 1.0)]}, "step", "accuracy", epath.Path(runs / "none" / "c.png"))
