"""Trees against an evaluator of their text, and files that are as they should be, or broken."""

import itertools
import statistics

import ml_collections
import numpy as np
import pytest
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.processes import ordered_map
from linear_transformer.data.listops import dataset as listops
from linear_transformer.data.listops.trees import Shape, distinct_trees, make_tree

SMALL = Shape(min_length=5, max_length=60, max_depth=4, max_args=5)
COUNTS = {"train": 30, "validation": 5, "test": 5}
ROW = "( ( ( [MAX 2 ) 9 ) ] )\t9\n"


def evaluate(text):
    """Value, number of tokens, operators on the longest path, and most arguments of one."""
    reductions = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda values: int(statistics.median(values)),
        "[SM": lambda values: sum(values) % 10,
    }
    tokens = [token for token in text.split() if token not in "()"]
    stack, depth, most = [[]], 0, 0
    for token in tokens:
        if token in reductions:
            stack.append([token])
            depth = max(depth, len(stack) - 1)
        elif token == "]":
            operator, *values = stack.pop()
            stack[-1].append(reductions[operator](values))
            most = max(most, len(values))
        else:
            stack[-1].append(int(token))
    [[value]] = stack
    return value, len(tokens), depth, most


def config_of(path):
    return ml_collections.ConfigDict({"dataset": "listops", "path": str(path)})


@pytest.fixture
def written(tmp_path):
    listops.write(epath.Path(tmp_path), COUNTS, distinct_trees(SMALL, 0, 1))
    return tmp_path


def test_values():
    trees = [make_tree(SMALL, 0, index) for index in range(400)]
    found = [evaluate(text) for text, _ in trees]
    values, lengths, depths, arguments = zip(*found, strict=True)
    assert list(values) == [value for _, value in trees]
    assert min(lengths) == 6 and 40 < max(lengths) < 60
    assert max(depths) == 3 and max(arguments) == 5
    for text, _ in trees:  # a binary tree: as many opened as closed
        assert text.count("( ") == text.count(" )")


def test_published_shape():
    """The lengths and the labels of Long Range Arena's trees, within three standard errors."""
    trees = [make_tree(Shape(), 1, index) for index in range(300)]
    lengths = [text.count(" ") + 1 - text.count("(") - text.count(")") for text, _ in trees]
    assert min(lengths) > 500 and max(lengths) < 2000
    assert 970 < np.mean(lengths) < 1110  # 1039
    shares = np.bincount([value for _, value in trees]) / len(trees)
    assert 0.25 < shares[0] + shares[9] < 0.42  # 17 % each: they win at MIN and MAX
    assert shares[1:9].max() < 0.15  # 9 % at most


def test_text():
    text, _ = make_tree(Shape(min_length=3, max_length=5, max_depth=2, max_args=2), 0, 0)
    operator, *rest = (token for token in text.split() if token not in "()")
    assert text == f"( ( ( {operator} {rest[0]} ) {rest[1]} ) ] )"


def test_distinct():
    shape = Shape(min_length=0, max_length=5, max_depth=2, max_args=2)
    trees = list(itertools.islice(distinct_trees(shape, 0, 1), 410))
    assert len(set(trees)) == 410  # 10 digits and 4 operators of two digits: there are no more


def test_same_for_any_number_of_processes(tmp_path):
    trees = [list(itertools.islice(distinct_trees(SMALL, 3, n), 450)) for n in (1, 2)]
    assert trees[0] == trees[1]
    assert trees[0] != list(itertools.islice(distinct_trees(SMALL, 4, 1), 450))


def test_load(written):
    source = listops.load(config_of(written))
    assert (source.vocab_size, source.num_classes, source.sequences_per_example) == (16, 10, 1)
    expected = list(itertools.islice(distinct_trees(SMALL, 0, 1), 40))
    ids = {token: n for n, token in enumerate(listops.TOKENS, 1)}
    assert len(ids) == 15 and {"[MIN", "[MAX", "[MED", "[SM", "]"} <= set(ids)
    for split, count in COUNTS.items():
        items, labels = source.split(split)
        assert len(items) == count and labels.dtype == np.int32
        for item, label in zip(items, labels, strict=True):
            text, value = expected.pop(0)
            [read] = source.read(item)
            assert read.tolist() == [ids[t] for t in text.split() if t not in "()"]
            assert label == value
    with pytest.raises(DataError, match='unknown split "dev"'):
        source.split("dev")


@pytest.mark.parametrize("folder", ["", "lra_release", "lra_release/lra_release"])
def test_layouts(written, tmp_path, folder):
    (tmp_path / "other" / folder).mkdir(parents=True)
    (written / "listops-1000").rename(tmp_path / "other" / folder / "listops-1000")
    assert len(listops.load(config_of(tmp_path / "other")).split("train")[0]) == 30
    inner = tmp_path / "other" / folder / "listops-1000"
    assert len(listops.load(config_of(inner)).split("test")[0]) == 5


def test_tokens_need_not_be_one_blank_apart():
    assert listops.tokenize(b"( [SM  3 ) ] )") == listops.tokenize(b"( [SM 3 ) ] )")
    assert list(listops.tokenize(b"( [SM 3 ) ] )")) == [14, 4, 15]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "row 1 must be the header"),
        ("Source Target\n" + ROW, "row 1 must be the header"),
        ("Source\tTarget\n", "no row behind the header"),
        ("Source\tTarget\n" + ROW + "( 1 )\n", "row 3 has 1 columns; 2 expected"),
        ("Source\tTarget\n" + ROW + "1\t2\t3\n", "row 3 has 3 columns; 2 expected"),
        ("Source\tTarget\n1\t10\n", "row 2 has the label '10'; 0 to 9 expected"),
        ("Source\tTarget\n1\tx\n", "row 2 has the label 'x'; 0 to 9 expected"),
        ("Source\tTarget\n12 3\t1\n", "row 2: unknown token '12'"),
        ("Source\tTarget\n[MAX [MIN 1 2 ] 3\t3\n", "row 2: 2 operators and 1 closing brackets"),
        ("Source\tTarget\n( ( [SUM 3 ) ] )\t1\n", r"row 2: unknown token '\[SUM'"),
        ("Source\tTarget\n[MAX1 ]\t1\n", r"row 2: unknown token '\[MAX1'"),
        ("Source\tTarget\n( )\t1\n", "row 2: the source is empty"),
    ],
)
def test_broken_files(written, content, message):
    path = written / "listops-1000" / "basic_val.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"basic_val\.tsv: {message}") as error:
        listops.load(config_of(written))
    assert "\n" not in str(error.value)


def test_missing(written, tmp_path):
    with pytest.raises(DataError, match=r"config\.data\.path .*python -m linear_transformer"):
        listops.load(config_of(""))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"config\.data\.path = .*no listops-1000/basic_train"):
        listops.load(config_of(tmp_path / "none"))
    (written / "listops-1000" / "basic_test.tsv").unlink()
    with pytest.raises(DataError, match=r"basic_test\.tsv: cannot be read"):
        listops.load(config_of(written))


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"min_length": 10, "max_length": 11}, "--max_length=11"),
        ({"max_depth": 0}, "--max_depth=0"),
        ({"max_args": 1}, "--max_args=1"),
        ({"min_length": -1}, "--min_length=-1"),
    ],
)
def test_shapes_without_trees(values, flag):
    with pytest.raises(DataError, match=flag):
        Shape(**values)


def test_trees_that_do_not_turn_up(monkeypatch):
    monkeypatch.setattr("linear_transformer.data.listops.trees._MAX_TRIES", 100)
    with pytest.raises(DataError, match="no tree of 501 to 1999 tokens"):
        make_tree(Shape(max_depth=2), 0, 0)
    shape = Shape(min_length=0, max_length=2, max_depth=1)
    with pytest.raises(DataError, match="only 10 different trees"):
        list(itertools.islice(distinct_trees(shape, 0, 1), 11))


def test_number_of_processes():
    with pytest.raises(DataError, match="--processes=0"):
        list(ordered_map(abs, [1], 0))
