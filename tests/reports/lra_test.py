"""The table of Long Range Arena: cells, notes and averages, and published rows as published."""

import json

import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.reports import lra
from linear_transformer.reports.published_lra import PUBLISHED, TASKS
from tests.training import runs

DATA = {
    "listops": {"dataset": "listops", "path": "lra", "sequence_length": 2_000},
    "text": {"dataset": "newsgroups", "path": "", "sequence_length": 1_024},
    "retrieval": {"dataset": "passages", "path": "", "sequence_length": 4_000},
    "image": {"dataset": "fashion_mnist", "path": "", "sequence_length": 1_024},
    "pathfinder": {"dataset": "pathfinder", "difficulty": "hard", "sequence_length": 1_024},
}


def write(folder, data, accuracy=None, task="sequence_classification"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"task": task, "data": data}))
    if accuracy is not None:
        record = {"step": 5, "split": "test", "metrics": {"accuracy": accuracy}}
        (folder / "eval-test.json").write_text(json.dumps(record))


def write_validation(folder, *accuracies):
    lines = [
        json.dumps({"step": 1000 * n, "split": "validation", "accuracy": value})
        for n, value in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_row_of_runs(tmp_path):
    for number, (task, data) in enumerate(DATA.items()):
        write(tmp_path / f"{task}-linear,small", data, 0.4 + 0.1 * number)
    text = lra.markdown(lra.read_runs([f"{tmp_path}/*"]))
    head, _, row, *published = rows_of(text)
    assert head == ["model", *TASKS, *lra.AVERAGES, "source"]
    accuracies = ["40.00[^1]", "50.00[^2]", "60.00[^3]", "70.00[^4]", "80.00", "not run"]
    means = ["60.00", "not run", "50.00"]  # nobody knows if Path-X would fail
    assert row == ["linear,small", *accuracies, *means, "this project"]
    assert "\n[^1]: listops: of lra, released files or generated ones\n" in text
    assert "\n[^2]: newsgroups instead of imdb\n[^3]: passages instead of aan\n" in text
    assert "[^4]: fashion_mnist instead of cifar10\n" in text
    assert len(published) == len(PUBLISHED)


def test_path_x_is_in_the_row_of_its_model(tmp_path):
    """From the last validation, later than the evaluation; without all tasks there is no mean."""
    write(tmp_path / "pathfinder-linear", DATA["pathfinder"], 0.75)
    data = {"dataset": "pathfinder", "difficulty": "easy", "sequence_length": 128**2}
    write(tmp_path / "pathfinder-linear,128", data, 0.9)
    write_validation(tmp_path / "pathfinder-linear,128", 0.5, 0.625)
    write(tmp_path / "listops-softmax", DATA["listops"])
    text = lra.markdown(lra.read_runs([f"{tmp_path}/*"]))
    _, _, softmax, linear, *_ = rows_of(text)
    assert softmax == ["softmax", *["not run"] * 9, "this project"]
    assert linear == ["linear", *["not run"] * 4, "75.00", "62.50[^1][^2]"] + ["not run"] * 3 + [
        "this project"
    ]
    assert "[^1]: pathfinder: easy images instead of hard\n" in text
    assert "[^2]: validation split, step 2,000\n" in text


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (
            DATA["listops"] | {"path": "own/listops", "sequence_length": 500},
            ["of own/listops, released files or generated ones", "500 tokens of 2,000"],
        ),
        (DATA["text"] | {"dataset": "imdb"}, ["its train half only"]),
        (DATA["text"] | {"dataset": "imdb", "path": "aclImdb"}, []),
        (DATA["image"] | {"dataset": "cifar10", "path": "cifar"}, []),
    ],
)
def test_notes(tmp_path, data, notes):
    write(tmp_path / "x-linear", data, 0.5)
    [cells] = lra.read_runs([f"{tmp_path}/x-linear"]).values()
    [cell] = cells.values()
    assert all(note in text for note, text in zip(notes, cell.sources, strict=True))


@pytest.mark.parametrize(
    ("source", "model", "column", "expected"),
    [
        ("Long Range Arena, table 1", "Linear Transformer", 0, 50.55),
        ("Long Range Arena, table 1", "BigBird", 0, 55.01),
        ("Long Range Arena, table 1", "Transformer", 1, 53.66),
        ("Nystromformer", "Performer", 0, 53.63),
        ("HGRN2", "Transformer", 2, 47.81),
        ("HGRN2", "HGRN2", 1, 87.66),
        ("Mega", "Mega", 1, 88.21),
        ("S5", "S5", 1, 87.46),
        ("Annotated", "S4D-Lin", 1, 78.39),
    ],
)
def test_published_averages(source, model, column, expected):
    """The averages that the sources print, of their rows as copied."""
    [accuracies] = [values for s, name, values in PUBLISHED if name == model and source in s]
    mean = lra.averages(accuracies)[column]
    assert mean == pytest.approx(expected, abs=0.04)


def test_published_rows_are_percent():
    for _, _, (*five, path_x) in PUBLISHED:
        assert len(five) + 1 == len(TASKS)
        assert all(10 < value < 100 for value in five)
        assert path_x in (None, "failed") or 10 < path_x < 100


def test_mistakes(tmp_path):
    write(tmp_path / "mqar-linear", {"dataset": "words"}, task="synthetic")
    with pytest.raises(ConfigError, match=r"mqar-linear is a run of another task \(synthetic\)"):
        lra.read_runs([f"{tmp_path}/mqar-linear"])
    write(tmp_path / "a-linear", DATA["pathfinder"] | {"sequence_length": 4_096})
    with pytest.raises(ConfigError, match="pathfinder of 4096 tokens is not in the table"):
        lra.read_runs([f"{tmp_path}/a-linear"])
    write(tmp_path / "b-linear", DATA["text"], 0.5)
    write(tmp_path / "c-linear", DATA["text"], 0.5)
    with pytest.raises(ConfigError, match=r"b-linear and .*c-linear are both Text of linear"):
        lra.read_runs([f"{tmp_path}/b-linear", f"{tmp_path}/c-linear"])
    (tmp_path / "b-linear" / "eval-test.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"b-linear/eval-test\.json: not an evaluation"):
        lra.read_runs([f"{tmp_path}/b-linear"])


def test_command(tmp_path):
    write(tmp_path / "text-linear", DATA["text"], 0.5)
    module = ["-m", "linear_transformer.analysis.lra"]
    result = runs.execute([*module, f"--runs={tmp_path}/*"])
    assert (result.returncode, result.stderr) == (0, "")
    assert "| linear | not run | 50.00[^1] |" in result.stdout
    assert "| Linear Transformer | 16.13 |" in result.stdout
