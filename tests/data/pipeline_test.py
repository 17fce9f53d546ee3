"""Training batches: every prediction once, sharding, BOS weights, segments, exact resumption."""

import collections
import itertools
import json

import numpy as np
import pytest

from linear_transformer.data import DataError, training_dataset
from linear_transformer.data.text.corpus import Corpus
from linear_transformer.data.text.tokenizers import WordTokenizer

BOS = 5000
LENGTHS = (7, 1, 120, 33, 64, 2, 250, 15, 16, 17, 90, 5)
NUM_TOKENS = sum(LENGTHS)


def _corpus(lengths=LENGTHS):
    # Every token of the corpus is a different number: a token tells its document and position.
    ids = np.arange(sum(lengths), dtype=np.uint16)
    documents = np.split(ids, np.cumsum(lengths)[:-1])
    tokenizer = WordTokenizer([str(i) for i in range(BOS)])
    splits = {"train": documents, "validation": [], "test": []}
    return Corpus("numbers", "none", tokenizer, splits, dict.fromkeys(splits, 0))


FIRST_TOKENS = set(np.cumsum((0, *LENGTHS[:-1])).tolist())


def _dataset(packing, batch_size=4, sequence_length=16, seed=3, **kwargs):
    return training_dataset(
        kwargs.pop("corpus", None) or _corpus(),
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        packing=packing,
        **kwargs,
    )


def _targets(batch):
    return batch["targets"][batch["weights"] > 0].tolist()


def _same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def _check_predictions(batch):
    """Every prediction is of the token that follows its input in the same document."""
    weighed = batch["weights"] > 0
    inputs, targets = batch["inputs"][weighed], batch["targets"][weighed]
    assert BOS not in targets
    for previous, token in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert previous == (BOS if token in FIRST_TOKENS else token - 1)


@pytest.mark.parametrize("packing", ["contiguous", "packed"])
def test_shapes_and_predictions(packing):
    for batch in itertools.islice(_dataset(packing), 50):
        for name, array in batch.items():
            assert array.shape == (4, 16)
            assert array.dtype == (np.float32 if name == "weights" else np.int32)
        _check_predictions(batch)
    extra = {"segment_ids", "positions"} if packing == "packed" else set()
    assert batch.keys() == {"inputs", "targets", "weights"} | extra


def test_contiguous_weights_only_leave_out_bos():
    for batch in itertools.islice(_dataset("contiguous"), 50):
        np.testing.assert_array_equal(batch["weights"], batch["targets"] != BOS)


@pytest.mark.parametrize("sequence_length", [1, 16, 50, 632])
def test_contiguous_epoch_visits_once(sequence_length):
    ring = NUM_TOKENS + len(LENGTHS)
    num_windows = ring // sequence_length
    rows = iter(_dataset("contiguous", batch_size=1, sequence_length=sequence_length))
    orders = []
    for _ in range(3):
        epoch = [_targets(row) for row in itertools.islice(rows, num_windows)]
        counts = collections.Counter(itertools.chain.from_iterable(epoch))
        assert set(counts.values()) == {1}
        assert NUM_TOKENS - len(counts) <= ring % sequence_length
        orders.append(epoch)
    assert orders[0] != orders[1] != orders[2]
    if sequence_length > 1:
        # The borders of the windows move, not only their order.
        assert sorted(orders[0]) != sorted(orders[1])


def test_contiguous_reads_the_whole_ring():
    batches = itertools.islice(_dataset("contiguous"), 100)
    seen = set(itertools.chain.from_iterable(map(_targets, batches)))
    assert seen == set(range(NUM_TOKENS))


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_packed_visits_every_token_once_an_epoch(num_epochs):
    # Rows are emitted 64 at a time and can mix epochs, so count whole groups and bound the rest.
    counts = collections.Counter()
    dataset = _dataset("packed", batch_size=1)
    for row in dataset:
        counts.update(_targets(row))
        if counts.total() >= num_epochs * NUM_TOKENS + 64 * 16:
            break
    assert set(counts) == set(range(NUM_TOKENS))
    assert min(counts.values()) >= num_epochs
    assert max(counts.values()) - min(counts.values()) <= 1 + -(-64 * 16 // NUM_TOKENS)


def test_packed_segments_never_mix():
    cut = set()
    for batch in itertools.islice(_dataset("packed"), 40):
        for row in range(4):
            ids = batch["segment_ids"][row]
            padding = ids == 0
            np.testing.assert_array_equal(batch["weights"][row], ~padding)
            assert not batch["inputs"][row][padding].any()
            assert not batch["positions"][row][padding].any()
            assert sorted(set(ids[~padding])) == list(range(1, ids.max() + 1))
            for segment in range(1, ids.max() + 1):
                here = np.flatnonzero(ids == segment)
                np.testing.assert_array_equal(here, np.arange(here[0], here[-1] + 1))
                targets = batch["targets"][row][here]
                # Consecutive tokens, at most one of which begins a document: the first.
                np.testing.assert_array_equal(np.diff(targets), 1)
                assert not FIRST_TOKENS & set(targets[1:].tolist())
                np.testing.assert_array_equal(batch["positions"][row][here], np.arange(here.size))
                cut.add(here.size)
    assert 16 in cut and 1 in cut


@pytest.mark.parametrize("packing", ["contiguous", "packed"])
def test_deterministic_in_the_seed(packing):
    first, same, other = (
        list(itertools.islice(_dataset(packing, seed=seed), 30)) for seed in (3, 3, 4)
    )
    for a, b in zip(first, same, strict=True):
        _same(a, b)
    assert any((a["inputs"] != b["inputs"]).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("packing", ["contiguous", "packed"])
def test_resumes_exactly(packing):
    steps = 90
    iterator = iter(_dataset(packing))
    states, batches = [], []
    for _ in range(steps):
        states.append(json.dumps(iterator.get_state()))
        batches.append(next(iterator))
    fresh = iter(_dataset(packing))
    random_steps = np.random.default_rng(0).integers(0, steps, 12).tolist()
    for step in (0, steps - 1, *random_steps):
        fresh.set_state(json.loads(states[step]))
        assert json.dumps(fresh.get_state()) == states[step]
        for expected in batches[step : step + 20]:
            _same(next(fresh), expected)


def test_contiguous_shards_are_the_global_batch():
    whole = iter(_dataset("contiguous", batch_size=6))
    shards = [
        iter(_dataset("contiguous", batch_size=2, process_index=i, process_count=3))
        for i in range(3)
    ]
    for _ in range(60):
        expected = sorted(next(whole)["inputs"].tolist())
        actual = np.concatenate([next(shard)["inputs"] for shard in shards])
        assert sorted(actual.tolist()) == expected


def test_packed_shards_are_disjoint_and_complete():
    corpus = _corpus((5,) * 96)  # no document is cut, so a first token stands for a piece
    seen = []
    for index in range(3):
        rows = iter(
            _dataset(
                "packed",
                batch_size=1,
                sequence_length=5,
                corpus=corpus,
                process_index=index,
                process_count=3,
            )
        )
        seen += [next(rows)["targets"][0, 0] for _ in range(64)]
    # 64 rows of each process are two epochs of 32 pieces.
    counts = collections.Counter(seen)
    assert set(counts) == set(range(0, 480, 5))
    assert set(counts.values()) == {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "dense"}, r'config.data.packing = "dense"'),
        ({"batch_size": 0}, "config.data.batch_size = 0"),
        ({"sequence_length": 0}, "config.data.sequence_length = 0"),
        ({"sequence_length": 633}, "sequence_length = 633: the train split of numbers has only"),
        ({"seed": -1}, "config.seed = -1"),
        ({"packing": "packed", "corpus": _corpus((0,))}, "the train split has no tokens"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(DataError, match=message):
        _dataset(**({"packing": "contiguous"} | change))
