"""Gated DeltaNet-2 (Hatamizadeh, Choi and Kautz 2026, arXiv:2605.22791)."""

import jax

from linear_transformer.nn.mixers.kimi_delta_attention import KimiDeltaAttention
from linear_transformer.nn.mixers.mechanism import mechanism
from linear_transformer.ops.delta import erase_delta_attention


@mechanism(
    "gdn2",
    meaning="delta rule with separate gates of what a key erases and of what it writes",
    source="Hatamizadeh, Choi and Kautz 2026, arXiv:2605.22791",
    options={"negative_eigenvalues": False},
    encodes_order=True,
)
class GatedDeltaNet2(KimiDeltaAttention):
    """Kimi delta attention with a gate of every key feature and a gate of every value feature.

        e_t = sigmoid(W_e x_t)          w_t = sigmoid(W_w x_t)
        S_t = (I - k_t (e_t * k_t)^T) diag(a_t) S_{t-1} + k_t (w_t * v_t)^T

    With e_t = w_t = b_t it is `KimiDeltaAttention`, which explains decay, output gate and options.
    With `negative_eigenvalues`, e_t goes up to 2 and w_t to 1, as in the released code of fla.
    """

    def _make_gates(self, rngs):
        self.erase = self._linear(self.heads * self.key_width, rngs)
        self.write = self._linear(self.heads * self.value_width, rngs)

    def _attend(self, q_BTHK, k_BTNHK, v_BTNHV, x_BTD, **options):
        erase, write = (
            jax.nn.sigmoid(gate.astype(self._state_dtype))
            for gate in self._by_head(x_BTD, self.erase, self.write)
        )
        if self.negative_eigenvalues:
            erase = 2 * erase
        v_BTHV = v_BTNHV[:, :, 0]
        return erase_delta_attention(
            q_BTHK,
            k_BTNHK[:, :, 0],
            (write * v_BTHV).astype(v_BTHV.dtype),
            self._log_decay(x_BTD),
            erase,
            **options,
        )
