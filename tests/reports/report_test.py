"""Cells of fabricated runs, and what is printed and drawn of them."""

import dataclasses

import pytest

from linear_transformer.errors import UserError
from linear_transformer.reports import cells, report
from linear_transformer.reports.runs import find
from linear_transformer.reports.tables import PAPER, REDUCED, Column, Row, Table, load_table
from tests.reports import folders

LINEAR, SOFTMAX = folders.TABLE.rows


@pytest.fixture
def runs(tmp_path):
    """linear twice at paper scale, softmax reduced; and three that count for nothing."""
    write, test = folders.write_run, {"accuracy": 0.985, "loss": 9.9}
    write(tmp_path / "linear", LINEAR.paper, {"loss": 0.125}, test=test)
    write(tmp_path / "seed1", LINEAR.paper, {"loss": 0.25}, test={"accuracy": 0.965}, seed=1)
    write(tmp_path / "small", LINEAR.reduced, {"loss": 5.0}, test=test)
    write(tmp_path / "softmax", SOFTMAX.reduced, {"loss": 0.5}, test={"accuracy": 0.75})
    write(tmp_path / "half", SOFTMAX.paper, {"loss": 0.1}, step=20, test=test)
    write(tmp_path / "other", SOFTMAX.paper, {"loss": 0.1}, test=test, optimizer__weight_decay=0.5)
    return tmp_path


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown(runs):
    text = report.markdown(folders.TABLE, cells.fill(folders.TABLE, find([runs])))
    assert rows_of(text) == [
        [
            *("linear", "accuracy, %", "98.0", "97.5 (mean of 2, 96.5 to 98.5)"),
            *("-0.5, within 1", "paper scale[^1][^2]"),
        ],
        [
            *("linear", "loss, nats", "-", "0.19 (mean of 2, 0.12 to 0.25)"),
            *("", "paper scale[^3][^4]"),
        ],
        ["softmax", "accuracy, %", "99.0", "75.0", "", "reduced[^5]"],
        ["softmax", "loss, nats", "NaN", "0.50", "", "reduced[^6]"],
    ]
    assert (
        "4 cells; 2 learned, paper scale; 0 speed, paper scale; 2 reduced; 0 not run; "
        "2 without a published number."
    ) in text
    (note,) = (line for line in text.splitlines() if line.startswith("[^5]"))
    assert f"--workdir={runs}/softmax`, `python eval.py --workdir={runs}/softmax" in note
    assert note.endswith("--split=test`, 2023-11-14 22:13 UTC, 15 s of training steps")
    assert "pairs" not in text  # the two rows are of different scales


def test_several_tables_in_one_document(runs):
    """Their notes have names of their own."""
    filled = cells.fill(folders.TABLE, find([runs]))
    text = report.markdown(folders.TABLE, filled, part="a-table1")
    assert text.startswith("## Copying\n")
    assert "paper scale[^a-table1-1][^a-table1-2]" in text
    assert "\n[^a-table1-1]: `python train.py" in text


def test_without_runs_a_cell_says_how(tmp_path):
    rows = (
        LINEAR,
        dataclasses.replace(SOFTMAX, paper=None, reason="unknown setting"),
        Row("lsh", (1.0, 2.0), reason="no such mechanism"),
    )
    table = dataclasses.replace(folders.TABLE, rows=rows)
    filled = cells.fill(table, find([tmp_path]))
    assert all(cell.value is None for cell in filled)
    hows = [row[-1] for row in rows_of(report.markdown(table, filled))][::2]
    assert hows[0] == f"`--config={folders.CONFIG}:linear --config.num_steps=40`"
    assert hows[1].startswith(f"unknown setting; reduced: `--config={folders.CONFIG}:softmax,small")
    assert hows[2] == "no such mechanism"
    assert not report.plot(folders.TABLE, [], tmp_path / "x.png")


def test_order_of_rows(runs):
    folders.write_run(runs / "softmax2", SOFTMAX.paper, test={"accuracy": 0.5})
    text = report.markdown(folders.TABLE, cells.fill(folders.TABLE, find([runs])))
    assert "accuracy: 0 of 1 pairs of measured rows are in the published order." in text


def test_benchmarks(tmp_path):
    """The newest file of paper size and the best batch; latency of one image, by device."""
    write = folders.write_benchmark
    write(tmp_path / "old.json", size="paper size", date="2026-01-01", linear=(1, 2))
    write(tmp_path / "new.json", size="paper size", date="2026-02-01", linear=(4, 71.4))
    write(tmp_path / "s.json", size="small twin", date="2026-03-01", linear=(9, 9), lsh_1=(5, 5))
    found = find([tmp_path])
    table = load_table("katharopoulos2020/table1")
    by_row = {c.row.name: c for c in cells.fill(table, found) if c.column.benchmark}
    assert (by_row["linear"].value, by_row["linear"].scale) == (71.4, PAPER)
    assert (by_row["lsh-1"].value, by_row["lsh-1"].scale) == (5, REDUCED)
    assert by_row["softmax"].value is None
    (line,) = (
        row for row in rows_of(report.markdown(table, list(by_row.values()))) if row[0] == "linear"
    )
    assert line[2:] == ["142.8", "71.40", "x 0.5", "paper scale, batch 8, all pixels[^2]"]
    latency = {
        c.column.name: c.value
        for c in cells.fill(load_table("katharopoulos2020/table5"), found)
        if c.row.name == "linear"
    }
    assert latency == {"MNIST, CPU": 0.25} | dict.fromkeys(
        ("MNIST, GPU", "CIFAR10, CPU", "CIFAR10, GPU")
    )


def test_mean_of_columns(runs):
    """Only where all parts were measured, at one scale."""
    accuracy = folders.TABLE.columns[0]
    other = dataclasses.replace(accuracy, name="loss", metric="loss", split="validation")
    mean = Column("mean", mean_of=("accuracy", "loss"), digits=1)
    linear = dataclasses.replace(LINEAR, published=(None, None, 60.0), paper=(None, None, None))
    linear = dataclasses.replace(linear, reduced=(LINEAR.reduced, LINEAR.reduced, None))
    row = dataclasses.replace(linear, name="part", reduced=(LINEAR.reduced, None, None))
    table = Table(title="", source="", columns=(accuracy, other, mean), rows=(linear, row))
    filled = [cell for cell in cells.fill(table, find([runs])) if cell.column is mean]
    assert [cell.value for cell in filled] == [pytest.approx((98.5 + 500) / 2), None]
    assert filled[0].difference is None  # of a reduced row


def test_best_of_a_grid(tmp_path):
    """The best mean over seeds; a point that was not run is said to be missing."""
    experiment = dataclasses.replace(LINEAR.paper, grid={"optimizer.learning_rate": (1e-3, 1e-2)})
    table = dataclasses.replace(
        folders.TABLE, rows=(dataclasses.replace(LINEAR, paper=experiment),)
    )

    def cell():
        return cells.fill(table, find([tmp_path]))[0]

    low, high = experiment.points()
    assert cell().remark.endswith(
        ":linear --config.num_steps=40`, optimizer.learning_rate in (0.001, 0.01)"
    )
    folders.write_run(tmp_path / "low", low, test={"accuracy": 0.9})
    assert (cell().value, cell().remark) == (90.0, "best of 1 of 2 points: learning_rate 0.001")
    folders.write_run(tmp_path / "high", high, test={"accuracy": 0.99})
    folders.write_run(tmp_path / "seed", high, test={"accuracy": 0.85}, seed=1)
    assert (cell().value, cell().remark) == (92.0, "best of 2 of 2 points: learning_rate 0.01")
    assert cell().values == (99.0, 85.0)


def test_listing(runs):
    filled = cells.fill(folders.TABLE, find([runs]))
    lines = report.listing({"a": filled, "b": filled[:1]}).splitlines()
    names = ("table", "cells", "learned, paper scale", "speed, paper scale", "reduced", "not run")
    assert lines[0] == f"| {' | '.join(names)} | without a published number |"
    assert lines[2:] == [
        "| a | 4 | 2 | 0 | 2 | 0 | 2 |",
        "| b | 1 | 1 | 0 | 0 | 0 | 0 |",
        "| all | 5 | 3 | 0 | 2 | 0 | 2 |",
    ]


@pytest.mark.parametrize("curves", [False, True])
def test_pictures(runs, curves):
    columns = folders.TABLE.columns[::-1] if curves else folders.TABLE.columns
    table = dataclasses.replace(folders.TABLE, curves=curves, columns=columns)
    filled = cells.fill(table, find([runs]))
    assert report.plot(table, filled, runs / "x.png")
    assert (runs / "x.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="cannot be written"):
        report.plot(table, filled, runs / "none" / "x.png")


def test_a_picture_of_many_columns_is_no_wider_than_a_page(tmp_path):
    """Eight panels make two rows of four; a picture of 1,400 pixels is read at 900."""
    columns = tuple(Column(f"speed, {n}", "steps/s", "loss") for n in range(8))
    rows = tuple(Row(name, (1.0,) * 8) for name in ("softmax", "linear"))
    table = Table(title="", source="", columns=columns, rows=rows)
    assert report.plot(table, cells.fill(table, find([tmp_path])), tmp_path / "x.png")
    size = (tmp_path / "x.png").read_bytes()[16:24]
    width, height = int.from_bytes(size[:4]), int.from_bytes(size[4:])
    assert width < 1400
    assert height > width / 4


def test_a_twin_in_another_unit(runs):
    """Its value has the name of its metric, and no bar beside the published one."""
    column = dataclasses.replace(folders.TABLE.columns[0], reduced_metric="loss", scale=1.0)
    row = dataclasses.replace(SOFTMAX, published=(99.0,))
    table = Table(title="", source="", columns=(column,), rows=(row,))
    [cell] = cells.fill(table, find([runs]))
    assert cell.value is None  # eval.py has not computed it
    test = {"accuracy": 0.1, "loss": 0.25}
    folders.write_run(runs / "again", SOFTMAX.reduced, test=test, seed=1)
    [cell] = cells.fill(table, find([runs]))
    assert (cell.value, cell.scale, cell.remark) == (0.25, REDUCED, "loss")
    assert report._bars([cell]) == [("softmax", "published", 99.0)]


def test_numbers():
    assert report.number(8651.4) == "8,651.4"
    assert report.number(3.4, 2) == "3.40"
    assert report.number("OOM", 2) == "OOM"
    assert report.number(None) == "-"
