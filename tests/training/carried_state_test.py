"""Training with a carried state: consecutive windows, exact through windows, and its resume."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linear_transformer.data import load_corpus, training_dataset
from linear_transformer.errors import ConfigError, UserError
from linear_transformer.tasks.language_modelling import LanguageModelling
from linear_transformer.training.build import Experiment
from tests.ops.contract import assert_agree
from tests.training import runs

T, ROWS = 32, 4
QUICK = {"xla_backend_optimization_level": 0}


def make_config(text, variant="linear", **changes):
    changes = {"data__packing": "carried", "model__positions": "none"} | changes
    return runs.make_config(text, variant, **changes)


def batches(text, count, **share):
    corpus = load_corpus(runs.make_config(text).data)
    share = {"batch_size": ROWS} | share
    data = training_dataset(corpus, sequence_length=T, seed=0, packing="carried", **share)
    return corpus, list(itertools.islice(data, count))


def test_rows_read_consecutive_windows_of_whole_documents(text):
    corpus, found = batches(text, 100)
    documents = corpus.documents("train")
    size = sum(len(d) + 1 for d in documents)
    steps = size // T // ROWS
    inputs, targets, ids, places = (
        np.concatenate([batch[name] for batch in found[:steps]], axis=1)
        for name in ("inputs", "targets", "segment_ids", "positions")
    )
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])  # no token is left out between windows
    pairs = {(row, n) for row in range(ROWS) for n in ids[row]}
    for row, n in pairs:
        own = ids[row] == n
        document = np.concatenate([[corpus.tokenizer.bos_id], documents[(n - 1) % len(documents)]])
        assert np.array_equal(inputs[row, own], document[places[row, own]])
        assert np.array_equal(np.diff(places[row, own]), np.ones(own.sum() - 1))
    starts = (places == 0).sum()
    assert starts == (inputs == corpus.tokenizer.bos_id).sum() > 1
    # The next epoch cuts the ring elsewhere, and no document goes on from the one before.
    second = found[steps]
    assert not np.array_equal(second["inputs"][:, 0], targets[:, -1])
    assert not set(second["segment_ids"].ravel()) & set(ids.ravel())


def test_processes_share_the_rows(text):
    _, whole = batches(text, 5)
    parts = [batches(text, 5, batch_size=2, process_index=i, process_count=2)[1] for i in (0, 1)]
    for step, batch in enumerate(whole):
        rows = np.empty_like(batch["inputs"])
        for i, part in enumerate(parts):
            rows[i::2] = part[step]["inputs"]
        assert np.array_equal(rows, batch["inputs"])


def test_two_windows_are_one_of_twice_the_length(text):
    """Loss and gradients, if the state between them is not detached."""
    with jax.enable_x64(True):
        config = make_config(text, model__dtype="float64")
        task = LanguageModelling(config)
        graphdef, parameters = nnx.split(task.make_model(nnx.Rngs(0)))
        parameters = jax.tree.map(lambda x: x.astype(jnp.float64), parameters)
        batch = jax.tree.map(jnp.asarray, next(iter(task.training_data(0, 1))))
        halves = [{k: v[:, i : i + T // 2] for k, v in batch.items()} for i in (0, T // 2)]

        def loss(parameters, parts):
            model = nnx.merge(graphdef, parameters)
            state, total = model.init_state(ROWS), 0.0
            for part in parts:
                metrics, state = task.carried_loss(model, part | {"state": state}, None)
                total += metrics["loss"][0]
            return total

        values = []
        for parts in ([batch], halves):
            run = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
            value, gradients = run(parameters, parts)
            leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(gradients)}
            values.append({"loss": value} | leaves)
    assert_agree(values[1], values[0], 1e-10)


def test_the_step_goes_on_from_the_state(text):
    """The loss of the second batch is that of the model that has read the first one."""
    built = Experiment(make_config(text, optimizer__learning_rate=1e-30))
    batch, *later = (
        jax.tree.map(jnp.asarray, batch)
        for batch in itertools.islice(built.task.training_data(0, 1), 3)
    )
    state, step = built.init_state(), built.train_step()
    model = nnx.merge(built.graphdef, state.parameters)
    carried, expected, alone = model.init_state(ROWS), [], []
    carried_loss, loss = (
        jax.jit(lambda batch, f=f: f(model, batch, None), compiler_options=QUICK)
        for f in (built.task.carried_loss, built.task.loss)
    )
    for part in (batch, *later):
        metrics, carried = carried_loss(part | {"state": carried})
        expected.append(metrics["loss"][0])
        alone.append(loss(part)["loss"][0])
    found = []
    for part in (batch, *later):
        state, metrics = step(state, part)
        found.append(metrics["loss"][0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-6)
    assert np.all(np.abs(np.subtract(found, alone)[1:]) > 1e-3)


def test_a_resumed_run_is_the_unbroken_one(text, tmp_path):
    config = make_config(text, num_steps=6)
    expected = runs.run(config, tmp_path / "unbroken")
    config.num_steps = 3
    runs.run(config, tmp_path / "parts")
    config.num_steps = 6
    state = runs.run(config, tmp_path / "parts")
    assert expected.carried is not None
    runs.assert_same_state(state, expected)
    assert runs.curve(tmp_path / "parts") == runs.curve(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "softmax"}, "state or positions of the model hold 1,024 tokens"),
        ({"model__positions": "learned"}, "state or positions of the model hold 32 tokens"),
        ({"accumulate_steps": 2}, "config.accumulate_steps must be 1"),
        ({"data__sequence_length": 4_000}, r"config.data.batch_size = 4: .* has only \d windows"),
    ],
)
def test_mistakes(changes, message, text):
    with pytest.raises(UserError, match=message):
        built = Experiment(make_config(text, **changes))
        built.task.training_data(0, 1)


def test_another_task_carries_no_state(text):
    config = make_config(text, "linear")
    config.task = "masked_language_modelling"
    config.model.mixers.linear.update(direction="bidirectional", convolution=0)
    with pytest.raises(ConfigError, match="masked_language_modelling carries no state"):
        Experiment(config)
