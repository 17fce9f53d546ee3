"""A linear-attention language model in one file: model, loss, optimizer, training loop, sampling.

    python examples/minimal.py                # 300 steps
    python examples/minimal.py --steps=20     # a short run

Softmax attention keeps every past token and compares each new token with all of them. Linear
attention keeps one matrix per head and updates it with each token. The same function can therefore
be computed in two ways: over all tokens in parallel, to train, and token by token like a recurrent
network, to sample. This file trains in the first way, samples in the second way, and shows that
both give the same numbers.

Names end in the axes of the array: B batch, T time, D model width, H heads, K key features per
head, V value features per head, E the 256 bytes. `q_BTHK` has the shape (B, T, H, K).
"""

import argparse
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from linear_transformer.data.text import embedded
from linear_transformer.nn.mixers.linear_attention import LinearAttention
from linear_transformer.ops.decay import decayed_attention

NUM_BYTES = 256  # the vocabulary: text is read byte by byte, so there is no tokenizer to train


class GatedAttention(nnx.Module):
    """Linear attention with a forget gate, built on an operation of `linear_transformer.ops`.

    Each head is a recurrent network. Its state S is a K x V matrix, a memory that maps keys to
    values; the gate a_t, between 0 and 1, is the fraction of the memory that the token keeps:

        S_t = a_t S_{t-1} + k_t v_t^T     write: store the value v_t under the key k_t
        o_t = S_t^T q_t                   read: look up the value stored under the query q_t
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        # One gate per head. With this bias the heads start with a memory of about 3 to 150 tokens:
        # some heads look at the last word and some at the last paragraph.
        self.gate = nnx.Linear(width, heads, use_bias=False, rngs=rngs)
        self.gate_bias_H = nnx.Param(jnp.linspace(1.0, 5.0, heads))
        # The sums in S grow with the number of tokens; a norm keeps the output at one scale.
        self.norm = nnx.RMSNorm(width // heads, rngs=rngs)
        self.output = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def init_state(self, batch: int) -> jax.Array:
        head_width = self.query.out_features // self.heads
        return jnp.zeros((batch, self.heads, head_width, head_width))

    def __call__(self, x_BTD, state_BHKV=None):
        layers = (self.query, self.key, self.value)
        shape = (*x_BTD.shape[:2], self.heads, -1)
        q_BTHK, k_BTHK, v_BTHV = (layer(x_BTD).reshape(shape) for layer in layers)
        # Gates are given as logarithms: a product of a thousand gates underflows, a sum does not.
        log_decay_BTH = jax.nn.log_sigmoid(self.gate(x_BTD) + self.gate_bias_H[...])
        # The operation picks its form: a parallel one for many tokens, the recurrence for one.
        qkv = (q_BTHK, k_BTHK, v_BTHV)
        o_BTHV, state_BHKV = decayed_attention(*qkv, log_decay_BTH, initial_state=state_BHKV)
        return self.output(self.norm(o_BTHV).reshape(x_BTD.shape)), state_BHKV


class Block(nnx.Module):
    """Residual block: the mixer moves information between tokens, the feed-forward does not."""

    def __init__(self, mixer: nnx.Module, width: int, *, rngs: nnx.Rngs):
        self.mixer = mixer
        self.mixer_norm = nnx.RMSNorm(width, rngs=rngs)
        self.feed_forward_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x_BTD, state=None):
        h_BTD, state = self.mixer(self.mixer_norm(x_BTD), state)
        x_BTD = x_BTD + h_BTD
        h_BTF = jax.nn.gelu(self.up(self.feed_forward_norm(x_BTD)))
        return x_BTD + self.down(h_BTF), state


class LanguageModel(nnx.Module):
    """Model that predicts each byte from the bytes before it.

    The first layer is a mixer of the library, the second layer is the class above. All mixers are
    called as `y, state = mixer(x, state)`, so any of `linear_transformer.nn.mixers` fits here. No
    layer needs positions: the convolution and the gates depend on the order of the tokens.
    """

    def __init__(self, width: int = 128, heads: int = 4, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(NUM_BYTES, width, rngs=rngs)
        library_mixer = LinearAttention(width, heads, convolution=4, rngs=rngs)
        mixers = (library_mixer, GatedAttention(width, heads, rngs=rngs))
        self.blocks = nnx.List([Block(mixer, width, rngs=rngs) for mixer in mixers])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, NUM_BYTES, rngs=rngs)

    def init_state(self, batch: int) -> list:
        """Returns the states of all layers before the first token. Their size never changes."""
        return [block.mixer.init_state(batch) for block in self.blocks]

    def __call__(self, tokens_BT, states=None):
        """Returns logits_BTE, and the states after the last token, for the next call."""
        x_BTD = self.embedding(tokens_BT)
        new_states = []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x_BTD, state = block(x_BTD, state)
            new_states.append(state)
        return self.head(self.norm(x_BTD)), new_states


def bits_per_byte(model: LanguageModel, text_BT: jax.Array) -> jax.Array:
    """Computes the loss: the mean of -log2 p(byte | bytes before it), 8 for a uniform guess."""
    logits_BTE, _ = model(text_BT[:, :-1])
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTE, text_BT[:, 1:])
    return nats_BT.mean() / math.log(2)


@nnx.jit
def train_step(model: LanguageModel, optimizer: nnx.Optimizer, text_BT: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(bits_per_byte)(model, text_BT)
    optimizer.update(model, gradients)
    return loss


def train(model: LanguageModel, text: np.ndarray, *, steps: int, batch: int = 8, length: int = 256):
    """Trains on random windows of the text; prints and returns the losses in bits per byte."""
    # Warm-up, because Adam's first estimates are noise; decay, so that the noise of the last steps
    # averages out; clipping, because a rare large gradient should not undo many small ones.
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(20, steps // 2), steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    random = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        start_B1 = random.integers(len(text) - length, size=(batch, 1))
        window_BT = text[start_B1 + np.arange(length + 1)]  # one byte more: the last target
        losses.append(float(train_step(model, optimizer, jnp.asarray(window_BT, jnp.int32))))
        if step % max(steps // 10, 1) == 0 or step == steps - 1:
            print(f"step {step:4}   {losses[-1]:.3f} bits per byte", flush=True)
    return losses


@functools.partial(nnx.jit, static_argnames="length")
def sample(model: LanguageModel, prompt_BT: jax.Array, key: jax.Array, *, length: int):
    """Continues the prompt in RNN mode: one byte in, one byte out, and a state of constant size.

    Returns tokens_BT, the new bytes, and logits_BTE, from which they were drawn.
    """
    # One parallel call reads the prompt and returns the state with which the recurrence starts.
    logits_BTE, states = model(prompt_BT, model.init_state(len(prompt_BT)))

    def step(carry, key):
        states, logits_BE = carry
        token_B = jax.random.categorical(key, logits_BE / 0.7)  # < 1: fewer unlikely bytes
        next_logits_BTE, states = model(token_B[:, None], states)
        return (states, next_logits_BTE[:, 0]), (token_B, logits_BE)

    start = (states, logits_BTE[:, -1])
    _, (token_TB, logits_TBE) = lax.scan(step, start, jax.random.split(key, length))
    return token_TB.T, logits_TBE.swapaxes(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    steps = parser.parse_args().steps

    # The documentation and sources of Python, 3.9 MB that come with the package.
    corpus = embedded.load(types.SimpleNamespace(tokenizer="bytes"))
    text, held_out = (np.concatenate(corpus.documents(split)) for split in ("train", "validation"))
    model = LanguageModel(rngs=nnx.Rngs(0))
    train(model, text, steps=steps)
    held_out_BT = jnp.asarray(held_out[: 64 * 257].reshape(64, 257), jnp.int32)
    print(f"held-out   {float(nnx.jit(bits_per_byte)(model, held_out_BT)):.3f} bits per byte")

    prompt_BT = jnp.asarray([list(b"def main(")], jnp.int32)
    tokens_BT, logits_BTE = sample(model, prompt_BT, jax.random.key(0), length=300)
    print("\ndef main(" + bytes(tokens_BT[0].tolist()).decode(errors="replace"))

    # Both ways agree: the parallel pass over the same text gives the same logits.
    parallel = nnx.jit(LanguageModel.__call__)
    whole_BTE, _ = parallel(model, jnp.concatenate([prompt_BT, tokens_BT], axis=1))
    difference = jnp.abs(whole_BTE[:, prompt_BT.shape[1] - 1 : -1] - logits_BTE).max()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(model.init_state(1)))
    print(f"\nstate: {state_bytes:,} bytes, at any length")
    print(f"RNN mode against the parallel pass: logits differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
