"""The table of mixers: the names that a layer pattern may use."""

from flax import nnx

from linear_transformer.nn.linear_attention import LinearAttention
from linear_transformer.nn.softmax_attention import SoftmaxAttention

MIXERS: dict[str, type[nnx.Module]] = {
    "linear": LinearAttention,
    "softmax": SoftmaxAttention,
}
