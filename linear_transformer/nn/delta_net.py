"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174; Yang et al. 2024, arXiv:2406.06484)."""

import jax.numpy as jnp
from flax import nnx

from linear_transformer.nn.delta_mixer import DeltaMixer


class DeltaNet(DeltaMixer):
    """The delta rule without decay, as in the second paper (section 3.3).

    Attributes:
      key_width: that of the values, width / heads, if None.
      convolution, negative_eigenvalues: see `DeltaMixer`.
      form, chunk_size: see `ops.delta.delta_attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int | None = None,
        convolution: int = 4,
        negative_eigenvalues: bool = False,
        form: str = "auto",
        chunk_size: int | None = None,
        output_scale: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            width,
            heads,
            key_width=key_width,
            convolution=convolution,
            negative_eigenvalues=negative_eigenvalues,
            form=form,
            chunk_size=chunk_size,
            output_scale=output_scale,
            dtype=dtype,
            rngs=rngs,
        )
