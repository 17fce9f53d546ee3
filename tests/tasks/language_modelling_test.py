"""Language modelling: the loss, and evaluation that counts every token once, against NumPy."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from linear_transformer.config import configuration
from linear_transformer.data import evaluation_batches
from linear_transformer.errors import ConfigError, UserError
from linear_transformer.inference.evaluation import Run, evaluate
from linear_transformer.tasks.base import Task
from linear_transformer.tasks.language_modelling import LanguageModelling, negative_log_likelihood
from linear_transformer.training.build import make_task
from tests.training import runs


def make(config):
    """A task, the graph of its model, and random parameters."""
    task = LanguageModelling(config)
    graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(0)))
    return task, graphdef, parameters


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(graphdef, parameters, inputs_BT):
    return nnx.merge(graphdef, parameters)(inputs_BT)[0]


def nats_of(graphdef, parameters, ids, bos_id):
    """Sum of -log p of a document that the model reads in one piece, in float64."""
    inputs = np.zeros((1, 1 << len(ids).bit_length()), np.int32)  # few shapes; nothing looks ahead
    inputs[0, 0], inputs[0, 1 : len(ids)] = bos_id, ids[:-1]
    log_p = log_softmax(logits_of(graphdef, parameters, inputs)[0, : len(ids)])
    return -log_p[np.arange(len(ids)), ids].sum()


def first_batch(task):
    return jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))


def test_negative_log_likelihood():
    rng = np.random.default_rng(0)
    logits_BTE = rng.normal(size=(2, 7, 11)).astype(np.float32) * 5
    targets_BT = rng.integers(11, size=(2, 7))
    expected = -np.take_along_axis(log_softmax(logits_BTE), targets_BT[..., None], -1)[..., 0]
    actual = negative_log_likelihood(jnp.asarray(logits_BTE), jnp.asarray(targets_BT))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_with_label_smoothing(smoothing, text):
    """Cross entropy against (1 - s) one-hot + s uniform (Szegedy et al. 2016), uneven weights."""
    task, graphdef, parameters = make(runs.make_config(text, label_smoothing=smoothing))
    batch = first_batch(task)
    batch["weights"] = jax.random.uniform(jax.random.key(0), batch["weights"].shape)
    model = nnx.merge(graphdef, parameters)
    metrics = task.loss(model, batch, None)
    log_p = log_softmax(logits_of(graphdef, parameters, batch["inputs"]))
    one_hot = np.eye(log_p.shape[-1])[batch["targets"]]
    wanted = (1 - smoothing) * one_hot + smoothing / log_p.shape[-1]
    weights = np.asarray(batch["weights"])[..., None]
    expected = -np.sum(wanted * log_p * weights)
    assert float(metrics["loss"][0]) == pytest.approx(expected, rel=1e-5)
    nll = -np.sum(one_hot * log_p * weights)
    assert float(metrics["nll"][0]) == pytest.approx(nll, rel=1e-5)
    assert float(metrics["loss"][1]) == pytest.approx(weights.sum(), rel=1e-6)


def test_dropout_only_with_a_key(text):
    task, graphdef, parameters = make(runs.make_config(text, model__dropout=0.5))
    batch = first_batch(task)
    loss = jax.jit(lambda key: task.loss(nnx.merge(graphdef, parameters), batch, key))
    losses = [
        float(loss(key)["loss"][0]) for key in (None, None, jax.random.key(0), jax.random.key(1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("packing", ["contiguous", "packed"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_stateful_evaluation_is_one_forward_pass(split, packing, text):
    """Every token once, and bits per byte as of a model that reads each document in one piece."""
    task, graphdef, parameters = make(runs.make_config(text, data__packing=packing))
    documents = task.corpus.documents(split)
    bos_id = task.corpus.tokenizer.bos_id
    metrics = task.evaluate_stateful(graphdef, parameters, split)
    assert metrics["tokens"] == sum(map(len, documents)) == task.corpus.num_bytes[split]
    nats = sum(nats_of(graphdef, parameters, ids, bos_id) for ids in documents)
    expected = nats / math.log(2) / task.corpus.num_bytes[split]
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(2**expected, rel=1e-4)


def test_many_documents_share_the_lanes(tmp_path):
    """More documents than lanes: a state that leaks into the next document would show."""
    rng = np.random.default_rng(0)
    for number in range(100):
        ids = rng.integers(97, 123, size=int(rng.integers(1, 150)))
        (tmp_path / f"{number:03}.txt").write_bytes(bytes(ids.tolist()))
    task, graphdef, parameters = make(runs.make_config(tmp_path, data__batch_size=2))
    documents = task.corpus.documents("test")
    assert len(documents) == 5
    metrics = task.evaluate_stateful(graphdef, parameters, "test")
    bos_id = task.corpus.tokenizer.bos_id
    nats = sum(nats_of(graphdef, parameters, ids, bos_id) for ids in documents)
    expected = nats / math.log(2) / sum(map(len, documents))
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    windowed = task.evaluate(graphdef, parameters, "test")
    assert windowed["tokens"] == metrics["tokens"] == sum(map(len, documents))


@pytest.mark.parametrize("variant", ["linear", "softmax"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_windowed_evaluation(split, variant, text):
    """Windows of 32 predictions of one document, each read without what came before it."""
    task, graphdef, parameters = make(runs.make_config(text, variant))
    documents, bos_id = task.corpus.documents(split), task.corpus.tokenizer.bos_id
    metrics = task.evaluate(graphdef, parameters, split)
    assert metrics["tokens"] == sum(map(len, documents))
    stream = [np.concatenate([[bos_id], ids]).astype(np.int32) for ids in documents]
    windows = [ids[i : i + 33] for ids in stream for i in range(0, len(ids) - 1, 32)]
    padded = np.stack([np.pad(window, (0, 33 - len(window))) for window in windows])
    log_p = log_softmax(logits_of(graphdef, parameters, padded[:, :-1]))
    log_p = np.take_along_axis(log_p, padded[:, 1:, None], -1)[..., 0]
    nats = -sum(row[: len(window) - 1].sum() for row, window in zip(log_p, windows, strict=True))
    expected = nats / math.log(2) / task.corpus.num_bytes[split]
    assert metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_longer_windows(text):
    """Windows of another length count as in a task that has this length in training."""
    config = runs.make_config(text, "softmax")
    config.data.evaluation_lengths = (64, 17)
    task, graphdef, parameters = make(config)
    metrics = task.evaluate(graphdef, parameters, "validation")
    assert task.metric_names(graphdef, parameters) == list(metrics)
    for length in (64, 17):
        other, _, _ = make(runs.make_config(text, "softmax", data__sequence_length=length))
        expected = other.evaluate(graphdef, parameters, "validation")["bits_per_byte"]
        assert metrics[f"bits_per_byte_at_{length}"] == pytest.approx(expected, rel=1e-6)
    assert [task.rows_at(length) for length in (17, 64, 1000)] == [4, 2, 1]


def test_the_first_batches_only(text):
    task, graphdef, parameters = make(runs.make_config(text))
    batches = evaluation_batches(
        task.corpus.documents("train"), task.corpus.tokenizer, batch_size=4, sequence_length=32
    )
    expected = sum(float(next(batches)["weights"].sum()) for _ in range(3))
    assert task.evaluate(graphdef, parameters, "train", 3)["tokens"] == expected


def test_evaluation_does_not_depend_on_the_batch(text):
    """Padding rows and columns weigh nothing."""
    values = []
    for size in (1, 4, 7):
        task, graphdef, parameters = make(runs.make_config(text, data__batch_size=size))
        values.append(task.evaluate(graphdef, parameters, "test")["bits_per_byte"])
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_state_too_small_for_a_document(text):
    task, graphdef, parameters = make(
        runs.make_config(text, "softmax", model__mixers={"softmax": {"cache_capacity": 64}})
    )
    with pytest.raises(ConfigError, match=r"longest document has [\d,]+ tokens.* hold 64"):
        task.evaluate_stateful(graphdef, parameters, "test")


def wikitext(folder):
    """A folder in the format of WikiText-103; returns the words of the test file."""
    words = [
        "robert",
        "<unk>",
        "was",
        "an",
        "english",
        "film",
        ",",
        "television",
        "and",
        "theatre",
        "actor",
        ".",
    ]
    rng = np.random.default_rng(0)
    for name, articles in (("train", 4), ("valid", 2), ("test", 3)):
        lines = []
        for number in range(articles):
            body = [" " + " ".join(rng.choice(words, 30)) + " " for _ in range(3)]
            lines += [" ", f" = Title {number} = ", " ", *body]
        (folder / f"wiki.{name}.tokens").write_text("\n".join(lines) + "\n")
    return (folder / "wiki.test.tokens").read_text().replace("\n", " <eos> ").split()


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_perplexity_per_word(tokenizer, tmp_path):
    """The total loss over the benchmark's number of words, whatever the tokens are."""
    words = wikitext(tmp_path)
    task, graphdef, parameters = make(
        runs.make_config(tmp_path, data__dataset="wikitext103", data__tokenizer=tokenizer)
    )
    assert task.corpus.num_words["test"] == len(words)
    documents, bos_id = task.corpus.documents("test"), task.corpus.tokenizer.bos_id
    assert len(documents) == 3
    nats = sum(nats_of(graphdef, parameters, ids, bos_id) for ids in documents)
    metrics = task.evaluate_stateful(graphdef, parameters, "test")
    # Of some 6 bytes a word, the perplexity of an untrained model is 257^6: compare logarithms.
    assert math.log(metrics["word_perplexity"]) == pytest.approx(nats / len(words), rel=1e-5)
    tokens = sum(map(len, documents))
    assert math.log(metrics["perplexity"]) == pytest.approx(nats / tokens, rel=1e-5)
    text_bytes = (tmp_path / "wiki.test.tokens").stat().st_size
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_run_evaluates_like_training_did(text, tmp_path, capsys):
    """The number at the end of training is eval's, to the last bit, and so is the file's."""
    config = runs.make_config(text, final_evaluation=True, ema_decay=0.5, num_steps=4)
    runs.run(config, tmp_path)
    final = runs.curve(tmp_path, "validation")[-1]
    assert final.pop("step") == 4
    assert final.pop("split") == "validation"
    run = Run.load(epath.Path(tmp_path))
    metrics = evaluate(run, "validation", stateful=True)
    assert {name: metrics[name] for name in final} == final
    record = json.loads((tmp_path / "eval-validation.json").read_text())
    assert record.keys() == {"step", "split", "metrics", "seconds"}
    assert (record["step"], record["split"], record["metrics"]) == (4, "validation", metrics)
    assert record["metrics"].keys() == final.keys() | {f"stateful_{name}" for name in final}
    assert "bits per byte" in capsys.readouterr().out


def test_the_average_is_what_a_run_evaluates(text, tmp_path):
    config = runs.make_config(text, ema_decay=0.9, num_steps=4)
    state = runs.run(config, tmp_path)
    run = Run.load(epath.Path(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, run.parameters, state.average)
    task = make_task(config)
    raw = task.evaluate(run.graphdef, state.parameters, "test")
    assert raw != task.evaluate(run.graphdef, run.parameters, "test")


def test_summaries_of_a_window(text):
    """Sums and counts become means; the loss is not what bits per byte are made of."""
    task = LanguageModelling(runs.make_config(text))
    means = task.summarize({"loss": (30.0, 10.0), "nll": (20.0, 10.0)}, "train")
    assert means["loss"] == 3
    assert means["bits_per_byte"] == pytest.approx(2 / math.log(2))
    assert means["perplexity"] == pytest.approx(math.e**2)
    assert task.summarize({"nll": (1e6, 1.0)}, "train")["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "speech"}, r"config\.task is 'speech'; choose one of language_modelling"),
        ({"data__sequence_length": 0}, r"config\.data\.sequence_length"),
        ({"data__sequence_length": 10**6}, r"config\.data\.sequence_length"),
        ({"data__batch_size": 0}, r"config\.data\.batch_size"),
        ({"data__packing": "loose"}, r"config\.data\.packing"),
        ({"seed": -1}, r"config\.seed"),
        (
            {"model__positions": "learned", "model__max_positions": 16},
            r"config\.model\.max_positions \(16\)",
        ),
        ({"model__num_heads": 3}, r"config\.model\.width"),
        ({"model__pattern": ("magic",)}, r"config\.model\.pattern names 'magic'"),
    ],
)
def test_mistakes_name_the_key(changes, message, text):
    with pytest.raises(UserError, match=message):
        next(iter(make_task(runs.make_config(text, **changes)).training_data(0, 1)))


def test_task_has_the_whole_interface(text):
    config = runs.make_config(text)
    task = make_task(config)
    assert isinstance(task, Task)
    facts = task.describe(task.make_model(nnx.Rngs(0)))
    size = sum(x.size for x in jax.tree.leaves(nnx.state(task.make_model(nnx.Rngs(0)))))
    assert facts["parameters"] == f"{size:,}"
    assert configuration.plain(config)["task"] == "language_modelling"
