"""Every table of configs/papers: it loads, and its experiments are configs."""

import pytest

from linear_transformer.errors import ConfigError
from linear_transformer.reports.runs import flatten
from linear_transformer.reports.tables import (
    PAPER,
    REDUCED,
    Column,
    Experiment,
    Row,
    Table,
    load_table,
    table_names,
)

NAMES = table_names()


def test_all_tables_are_there_in_order():
    katharopoulos = ["figure1", "figure2", *(f"table{n}" for n in range(1, 6))]
    expected = ["arora2023/figure2", "grazzi2024/table3", "gu2023/table11"]
    expected += [f"katharopoulos2020/{name}" for name in katharopoulos]
    expected += ["lra2020/table1", "lra2020/table2"]
    expected += ["nanogpt2022/table_readme"]
    expected += [f"qin2022/table{n}" for n in (1, 2, 3, 4, 6, *range(8, 13))]
    expected += ["qin2024/table1", "shen2021/table_imagenet", "yang2024/table_mad"]
    assert expected == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_experiments_are_configs(name):
    """Every change and every file is a key, and a cell that nothing can fill says why."""
    table = load_table(name)
    columns = {column.name for column in table.columns}
    assert len(columns) == len(table.columns)
    assert len({row.name for row in table.rows}) == len(table.rows)
    built = {}
    for number, column in enumerate(table.columns):
        assert {*column.mean_of} <= columns
        assert column.better in ("lower", "higher")
        for row in table.rows:
            experiments = [row.experiment(number, scale) for scale in (PAPER, REDUCED)]
            assert column.metric or column.benchmark or column.mean_of
            if column.metric:
                assert experiments[0] or row.reason
            for experiment in filter(None, experiments):
                command = " ".join(experiment.arguments())
                if command not in built:
                    built[command] = flatten(experiment.load())
                assert {*experiment.changes, *experiment.files} <= built[command].keys()


def test_published_numbers():
    """Some of each paper, and the averages of Long Range Arena are those of their cells."""
    rows = {row.name: row.published for row in load_table("katharopoulos2020/table4").rows}
    assert rows["linear"] == (0.644, 142.8, 3.40, 17.85)
    rows = {row.name: row.published for row in load_table("qin2022/table4").rows}
    assert rows["TransNormer T2"] == (29.57, 31.01)
    assert rows["TransNormer T1"] == (None, None)  # could not be confirmed
    for row in load_table("lra2020/table1").rows:
        *values, path_x, average = row.published
        assert path_x == "FAIL"
        # The paper's average of the Sinkhorn Transformer is not that of its cells.
        if row.name != "Sinkhorn Transformer":
            assert average == pytest.approx(sum(values) / 5, abs=0.011)


def test_a_row_has_a_value_for_each_column():
    with pytest.raises(ValueError, match="T, r: not one value for each column"):
        Table(title="T", source="", columns=(Column("a"),), rows=(Row("r", (1.0, 2.0)),))


def test_folders_differ_where_experiments_do():
    plain = Experiment("configs/papers/katharopoulos2020/mnist.py:lsh")
    changed = Experiment(plain.config, {"model.mixers.lsh.rounds": 1})
    assert plain.folder() == "papers/katharopoulos2020/mnist-lsh"
    assert changed.folder() == "papers/katharopoulos2020/mnist-lsh-rounds=1"
    assert changed.load().model.mixers.lsh.rounds == 1


def test_tables_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert table_names() == NAMES


def test_mistakes():
    with pytest.raises(
        ConfigError,
        match="--table=nope: the tables are arora2023/figure2, grazzi2024/table3",
    ):
        load_table("nope")
    with pytest.raises(ConfigError, match=r"configs/no\.py: cannot be imported"):
        Experiment("configs/no.py").load()
    with pytest.raises(ConfigError, match=r"default\.py has no key config\.data\.nothing"):
        Experiment("configs/default.py", {"data.nothing": 1}).load()
