"""generate(): the tokens of the model, exactly as many as asked for, in constant memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from linear_transformer.errors import ConfigError
from linear_transformer.inference.generation import Sampler, decode, generate, prefill
from linear_transformer.models.language_model import LanguageModel
from linear_transformer.models.language_model_config import LanguageModelConfig

VOCABULARY = 19
PROMPT = [3, 1, 4, 1, 5]
GREEDY = Sampler(temperature=0.0)

MODELS = {
    "linear": {"pattern": ("linear",), "positions": "sinusoidal"},
    "softmax": {"pattern": ("softmax",), "positions": "learned", "max_positions": 64},
    "both": {
        "pattern": ("linear", "softmax"),
        "positions": "rotary",
        "num_layers": 4,
        "scan_layers": True,
        "mixers": {"softmax": {"window": 4}},
    },
}


BUILT = {}


def build(name, **changes):
    """Split model, with every parameter away from its initial value."""
    key = name, repr(changes)
    if key not in BUILT:
        BUILT[key] = make(name, changes)
    return BUILT[key]


def make(name, changes):
    options = {"num_layers": 1, "width": 16, "num_heads": 2, "feed_forward_width": 32}
    options |= MODELS[name] | changes
    model = LanguageModel(
        LanguageModelConfig(vocab_size=VOCABULARY, tied=False, **options), rngs=nnx.Rngs(0)
    )
    graphdef, parameters = nnx.split(model)
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype("f4"), parameters)
    return graphdef, parameters


def tokens(model, num_tokens, sampler=GREEDY, prompt=PROMPT, seed=0):
    return list(generate(*model, prompt, num_tokens, sampler, seed))


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_argmax_of_full_forwards(name):
    graphdef, parameters = build(name)
    num_tokens = 50
    sample = tokens((graphdef, parameters), num_tokens)
    assert len(set(sample)) > 1  # a constant would prove little

    @jax.jit
    def best(tokens_BT):  # causal, so zeros after the end change nothing before it
        return jnp.argmax(nnx.merge(graphdef, parameters)(tokens_BT)[0], axis=-1)

    text = np.zeros((1, len(PROMPT) + num_tokens), np.int32)
    text[0, : len(PROMPT)] = PROMPT
    for i in range(len(PROMPT), text.shape[1]):
        text[0, i] = best(text)[0, i - 1]
    assert sample == text[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 32, 33, 34, 50])
def test_num_tokens_is_exact(num_tokens):
    """And a shorter sample is the start of a longer one, whatever the pieces."""
    model = build("linear")
    sample = tokens(model, num_tokens, Sampler())
    assert len(sample) == num_tokens
    assert sample == tokens(model, 66, Sampler())[:num_tokens]
    assert all(0 <= token < VOCABULARY for token in sample)


def test_seed_and_prompt_matter():
    model = build("linear")
    samples = [
        tokens(model, 20, Sampler(), prompt, seed)
        for prompt, seed in ((PROMPT, 0), (PROMPT, 1), ([7, 7, 2, 0, 5], 0), (PROMPT, 0))
    ]
    assert samples[0] == samples[3]
    assert samples[0] != samples[1]
    assert samples[0] != samples[2]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("softmax", {"mixers": {"softmax": {"cache_capacity": 8}}}),
        ("linear", {"positions": "learned", "max_positions": 8}),
    ],
)
def test_capacity(name, changes):
    """All of it can be used, though the compiled loop runs on past the last token asked for."""
    small = build(name, **changes)
    with pytest.raises(ConfigError, match=r"9 tokens.*hold 8.*--num_tokens"):
        tokens(small, 4)
    sample = tokens(small, 3)
    graphdef, parameters = small
    text = jnp.asarray([PROMPT + sample], jnp.int32)
    logits, _ = jax.jit(lambda text: nnx.merge(graphdef, parameters)(text))(text)
    assert sample == np.argmax(logits[0, 4:7], axis=-1).tolist()


def state_bytes(name, prompt_length):
    graphdef, parameters = build(name)
    prompt = jax.ShapeDtypeStruct((1, prompt_length), jnp.int32)
    state, _ = jax.eval_shape(
        functools.partial(prefill, graphdef, GREEDY), parameters, prompt, jax.random.key(0)
    )
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["linear", "both"])
def test_state_does_not_grow_with_the_prompt(name):
    assert state_bytes(name, 3) == state_bytes(name, 3000)


CACHES = ("rela", "flash_quad", "diag", "fox", "transformer_xl", "adaptive_span", "flash", "lsh")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("softmax", {}),
        ("both", {}),
        *(("linear", {"pattern": (name,)}) for name in CACHES),
    ],
)
def test_a_step_of_the_loop_is_small(name, changes):
    """No scan over layers, which copies their parameters, and no sum over the slots of a cache.

    One token is not computed as a whole block of tokens.
    """
    graphdef, parameters = build(name, **changes)
    key = jax.random.key(0)
    state, token_B = jax.eval_shape(
        functools.partial(prefill, graphdef, GREEDY), parameters, jnp.array([PROMPT]), key
    )
    program = jax.make_jaxpr(decode, static_argnums=(0, 1, 2))(
        graphdef, GREEDY, 8, parameters, state, token_B, key
    )
    scans = [e for e in equations(program.jaxpr) if e.primitive.name == "scan"]
    assert {e.params["length"] for e in scans} - {1} == {8}  # the form for one token is a scan of 1
    sums = [e for e in equations(program.jaxpr) if e.primitive.name == "cumsum"]
    if "lsh" not in changes.get("pattern", ()):  # which counts the tokens of a bucket
        assert all(e.invars[0].aval.shape[e.params["axis"]] <= 3 for e in sums)
    given = max(x.size for x in jax.tree.leaves((parameters, state)))
    made = [x.aval for e in equations(program.jaxpr) for x in e.outvars]
    assert max(math.prod(x.shape) for x in made) <= 2 * given


def test_linear_decoding_needs_little_memory():
    """The compiled loop holds the state, once: no array as long as what was read."""
    graphdef, parameters = build("linear")
    state = nnx.merge(graphdef, parameters).init_state(1)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    memory = {}
    for num_tokens in (64, 4096):
        lowered = decode.lower(
            graphdef,
            GREEDY,
            num_tokens,
            parameters,
            state,
            jnp.zeros((1,), jnp.int32),
            jax.random.key(0),
        )
        memory[num_tokens] = lowered.compile().memory_analysis().temp_size_in_bytes
    # Per token the loop may keep its key and the token; a state of `size` bytes it may not.
    assert memory[4096] - memory[64] < 64 * (4096 - 64)
    assert size > 500


def test_float64():
    with jax.enable_x64(True):
        config = LanguageModelConfig(
            vocab_size=VOCABULARY,
            width=16,
            num_layers=2,
            num_heads=2,
            feed_forward_width=32,
            pattern=("linear", "softmax"),
            dtype="float64",
        )
        model = nnx.split(LanguageModel(config, rngs=nnx.Rngs(0)))
        assert len(tokens(model, 3)) == 3
