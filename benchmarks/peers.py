"""Peers in PyTorch: pytorch-fast-transformers and torch's own attention.

README.md says how to install them.  Only this file imports torch, and only on request.  Each
function returns a call without arguments that does the work once.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from absl import flags

from linear_transformer.errors import ConfigError

FAST_TRANSFORMERS = "fast-transformers"
TORCH = "torch"
_MODULES = {FAST_TRANSFORMERS: "fast_transformers", TORCH: "torch"}

PEERS = flags.DEFINE_list("peers", [], f"Peers to time too: {', '.join(_MODULES)}.")

Run = Callable[[], Any]


def wanted(name: str) -> bool:
    """Returns whether --peers names a peer; raises a ConfigError if one is unknown or missing."""
    for peer in PEERS.value:
        if peer not in _MODULES:
            raise ConfigError(f"--peers={peer}: choose from {', '.join(_MODULES)}")
        if importlib.util.find_spec(_MODULES[peer]) is None:
            raise ConfigError(f"--peers={peer}: not installed, see benchmarks/README.md")
    return name in PEERS.value


def _torch() -> Any:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def linear_attention(batch: int, time: int, heads: int, width: int) -> Run:
    """Returns forward and backward of the causal linear attention layer, elu + 1 inside."""
    torch = _torch()
    from fast_transformers.attention.causal_linear_attention import CausalLinearAttention
    from fast_transformers.masking import LengthMask, TriangularCausalMask

    q, k, v, do = _inputs(torch, (batch, time, heads, width))
    attend = CausalLinearAttention(width)
    mask = TriangularCausalMask(time)
    lengths = LengthMask(torch.full((batch,), time, dtype=torch.long))

    def run():
        q.grad = k.grad = v.grad = None
        attend(q, k, v, mask, lengths, lengths).backward(do)

    return run


def causal_dot_product(batch: int, time: int, heads: int, width: int) -> Run:
    """Returns forward and backward of the layer's kernel: no feature map, no normaliser."""
    torch = _torch()
    from fast_transformers.causal_product import causal_dot_product as product

    q, k, v, do = _inputs(torch, (batch, heads, time, width))

    def run():
        q.grad = k.grad = v.grad = None
        product(q, k, v).backward(do)

    return run


def softmax_attention(batch: int, time: int, heads: int, width: int, dtype: str) -> Run:
    """Returns forward and backward of torch's scaled dot-product attention."""
    torch = _torch()
    shape = (batch, heads, time, width)
    q, k, v, do = _inputs(torch, shape, getattr(torch, dtype))

    def run():
        q.grad = k.grad = v.grad = None
        attend = torch.nn.functional.scaled_dot_product_attention
        attend(q, k, v, is_causal=True).backward(do)

    return run


def _inputs(torch: Any, shape: tuple[int, ...], dtype: Any = None) -> list[Any]:
    inputs = [torch.randn(shape).to(dtype or torch.float32).requires_grad_() for _ in range(3)]
    return [*inputs, torch.randn(shape).to(inputs[0].dtype)]


def train_step(
    peer: str,
    *,
    batch: int,
    time: int,
    layers: int,
    width: int,
    heads: int,
    feed_forward: int,
    vocab: int,
) -> Run:
    """Returns a step of AdamW on a language model: linear attention, or softmax for TORCH.

    The model has no position embedding and the step does not clip gradients; ours have both.
    """
    torch = _torch()
    nn, functional = torch.nn, torch.nn.functional
    if peer == FAST_TRANSFORMERS:
        stack = _encoder("TransformerEncoderBuilder", layers, width, heads, feed_forward)
        from fast_transformers.masking import TriangularCausalMask

        mask = TriangularCausalMask(time)
    else:
        stack = nn.Sequential(*(_softmax_block(width, heads, feed_forward) for _ in range(layers)))
    embedding, head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
    parameters = [p for module in (embedding, stack, head) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    tokens = torch.randint(0, vocab, (batch, time + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def run():
        optimizer.zero_grad()
        x = embedding(inputs)
        x = stack(x, attn_mask=mask) if peer == FAST_TRANSFORMERS else stack(x)
        functional.cross_entropy(head(x).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return run


def decode(
    *,
    batch: int,
    steps: int,
    layers: int,
    width: int,
    heads: int,
    feed_forward: int,
    vocab: int,
) -> Run:
    """Returns a loop that samples `steps` tokens from a recurrent linear-attention model."""
    torch = _torch()
    stack = _encoder("RecurrentEncoderBuilder", layers, width, heads, feed_forward).eval()
    embedding, head = torch.nn.Embedding(vocab, width), torch.nn.Linear(width, vocab)

    @torch.no_grad()
    def run():
        token, state = torch.zeros(batch, dtype=torch.long), None
        for _ in range(steps):
            x, state = stack(embedding(token), state=state)
            probabilities = torch.softmax(head(x), dim=-1)
            token = torch.multinomial(probabilities, 1)[:, 0]

    return run


def _encoder(builder: str, layers: int, width: int, heads: int, feed_forward: int) -> Any:
    import fast_transformers.builders

    return (
        getattr(fast_transformers.builders, builder)
        .from_kwargs(
            attention_type="causal-linear",
            n_layers=layers,
            n_heads=heads,
            query_dimensions=width // heads,
            value_dimensions=width // heads,
            feed_forward_dimensions=feed_forward,
            activation="gelu",
            dropout=0.0,
        )
        .get()
    )


def _softmax_block(width: int, heads: int, feed_forward: int) -> Any:
    torch = _torch()
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)

        def forward(self, x):
            qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, heads, -1))
            q, k, v = (y.transpose(1, 2) for y in qkv.unbind(2))
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.output(o.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.norms[1](x))))

    return Block()
