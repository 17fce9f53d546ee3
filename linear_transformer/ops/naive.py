"""Every mechanism of `ops` as its definition, for one head of one sequence: read this file first.

Nothing here is fast or safe: no blocks, no custom derivatives, no checks of arguments, no care for
non-finite numbers.  `jax.vmap` adds sequences and heads, and the tests compare the other files with
these functions.  Recurrences take two more keywords, `initial_state` and `segment_ids_T` of
`recur`; attention over pairs takes `visible_TS`, the mask of the keys that each query sees
(`pairs`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Inexact, Int

Step = Callable[..., tuple[Array, Array]]


def recur(
    step: Step,
    tokens: tuple[Array, ...],
    initial_state: Array,
    segment_ids_T: Int[Array, " T"] | None = None,
) -> tuple[Array, Array]:
    """Returns the outputs of all tokens, and the last state, of a recurrence.

    Args:
      step: the recurrence for one token, `step(state, *token) -> (state, output)`.
      tokens: arrays with time as the first axis.
      initial_state: the state before the first token.
      segment_ids_T: packed segments; the state is set to 0 where the id changes.  None is one
        segment.
    """
    ids_T = jnp.zeros(len(tokens[0]), int) if segment_ids_T is None else segment_ids_T
    starts_T = jnp.pad(ids_T[1:] != ids_T[:-1], (1, 0))

    def reset_and_step(state, token):
        start, *token = token
        return step(jnp.where(start, 0, state), *token)

    state, outputs = lax.scan(reset_and_step, initial_state, (starts_T, *tokens))
    return outputs, state


def pairs(
    segment_ids_T: Int[Array, " T"], *, causal: bool = True, window: int | None = None
) -> Bool[Array, "T T"]:
    """Mask of visible pairs: same segment, s <= t if causal, and t - s < window if given."""
    run_T = jnp.cumsum(jnp.pad(segment_ids_T[1:] != segment_ids_T[:-1], (1, 0)))
    distance_TT = jnp.arange(len(run_T))[:, None] - jnp.arange(len(run_T))
    visible_TT = (run_T[:, None] == run_T) & (distance_TT >= (0 if causal else -len(run_T)))
    return visible_TT if window is None else visible_TT & (distance_TT < window)


def linear_attention(q_TK, k_TK, v_TV, *, normalize=True, epsilon=1e-6, **start):
    """Linear attention: S_t = S_{t-1} + k_t [v_t, 1]^T, and o_t = x_t / (z_t + epsilon).

    Here [x_t, z_t] = S_t^T q_t: Katharopoulos et al. 2020 (arXiv:2006.16236), equations 10-12,
    after the feature map.  Without `normalize` there is no column of ones, and o_t = S_t^T q_t.
    """

    def step(state_KW, q_K, k_K, v_V):
        v_W = jnp.append(v_V, 1) if normalize else v_V
        state_KW += jnp.outer(k_K, v_W)
        o_W = q_K @ state_KW
        return state_KW, o_W[:-1] / (o_W[-1] + epsilon) if normalize else o_W

    return recur(step, (q_TK, k_TK, v_TV), **start)


def decayed_attention(
    q_TK, k_TK, v_TV, log_decay_Tx, log_value_decay_TV=None, bonus_K=None, **start
):
    """Attention with decay: S_t = diag(a_t) S_{t-1} diag(c_t) + k_t v_t^T, and o_t = S_t^T q_t.

    The decays are a_t = exp(log_decay_t) of keys, and c_t = exp(log_value_decay_t) of values, 1 if
    None.  With one number a_t per token this is RetNet (Sun et al. 2023, arXiv:2307.08621,
    equations 5-7) and Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 6), with K numbers gated
    linear attention (Yang et al. 2023, arXiv:2312.06635, equations 3-5).  With a bonus,
    o_t = (S_{t-1} + diag(bonus) k_t v_t^T)^T q_t: RWKV-6 (Peng et al. 2024, arXiv:2404.05892).
    """
    if log_value_decay_TV is None:
        log_value_decay_TV = jnp.zeros_like(v_TV)

    def step(state_KV, q_K, k_K, v_V, log_decay_x, log_value_decay_V):
        before_KV, update_KV = state_KV, jnp.outer(k_K, v_V)
        state_KV = jnp.exp(log_decay_x)[:, None] * before_KV * jnp.exp(log_value_decay_V)
        state_KV += update_KV
        if bonus_K is None:
            return state_KV, q_K @ state_KV
        return state_KV, q_K @ (before_KV + bonus_K[:, None] * update_KV)

    return recur(step, (q_TK, k_TK, v_TV, log_decay_Tx, log_value_decay_TV), **start)


def delta_attention(q_TK, k_TK, v_TV, log_decay_Tx, beta_T, **start):
    """Delta rule: S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T, and o_t = S_t^T q_t.

    Without decay (log_decay = 0) this is DeltaNet (Yang et al. 2024, arXiv:2406.06484, section
    2.2), with one decay per token Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024,
    arXiv:2412.06464, section 3.1), with K decays per token Kimi Delta Attention (Kimi Team 2025,
    arXiv:2510.26692, section 3).
    """
    return delta_product(q_TK, k_TK[:, None], v_TV[:, None], log_decay_Tx, beta_T[:, None], **start)


def delta_product(q_TK, k_TNK, v_TNV, log_decay_Tx, beta_TN, **start):
    """Delta rule with N steps per token, after the decay.

    DeltaProduct (Siems et al. 2025, arXiv:2502.10297, equations 5-6).
    """

    def step(state_KV, q_K, k_NK, v_NV, log_decay_x, beta_N):
        state_KV = jnp.exp(log_decay_x)[:, None] * state_KV
        for k_K, v_V, beta in zip(k_NK, v_NV, beta_N, strict=True):
            state_KV += beta * jnp.outer(k_K, v_V - k_K @ state_KV)
        return state_KV, q_K @ state_KV

    return recur(step, (q_TK, k_TNK, v_TNV, log_decay_Tx, beta_TN), **start)


def erase_delta_attention(q_TK, k_TK, v_TV, log_decay_Tx, erase_TK, **start):
    """Gated DeltaNet-2: S_t = (I - k_t (e_t * k_t)^T) diag(a_t) S_{t-1} + k_t v_t^T.

    Hatamizadeh, Choi and Kautz 2026 (arXiv:2605.22791), with v_t after the write gate.
    """

    def step(state_KV, q_K, k_K, v_V, log_decay_x, erase_K):
        state_KV = jnp.exp(log_decay_x)[:, None] * state_KV
        state_KV += jnp.outer(k_K, v_V - (erase_K * k_K) @ state_KV)
        return state_KV, q_K @ state_KV

    return recur(step, (q_TK, k_TK, v_TV, log_decay_Tx, erase_TK), **start)


def low_rank_delta_attention(q_TK, k_TK, v_TV, log_decay_Tx, write_TK, read_TK, **start):
    """RWKV-7: S_t = (diag(a_t) + write_t read_t^T) S_{t-1} + k_t v_t^T, and o_t = S_t^T q_t.

    Peng et al. 2025 (arXiv:2503.14456), section 4.1, with the state transposed.
    """

    def step(state_KV, q_K, k_K, v_V, log_decay_x, write_K, read_K):
        transition_KK = jnp.exp(log_decay_x)[:, None] * jnp.eye(len(k_K)) + jnp.outer(
            write_K, read_K
        )
        state_KV = transition_KK @ state_KV + jnp.outer(k_K, v_V)
        return state_KV, q_K @ state_KV

    return recur(step, (q_TK, k_TK, v_TV, log_decay_Tx, write_TK, read_TK), **start)


def selective_scan(x_TD, dt_TD, a_ND, b_TN, c_TN, *, negative_eigenvalues=False, **start):
    """Mamba: h_t = exp(dt_t A) h_{t-1} + B_t (dt_t x_t)^T, and y_t = C_t^T h_t.

    Gu and Dao 2023 (arXiv:2312.00752, equations 2a-2b), N numbers per channel: A is discretised by
    the zero-order hold, B by a step of Euler's method.  With negative eigenvalues,
    2 exp(dt_t A) - 1 replaces exp(dt_t A) (Grazzi et al. 2024, arXiv:2411.12537).
    """

    def step(state_ND, x_D, dt_D, b_N, c_N):
        factors_ND = jnp.exp(dt_D * a_ND)
        factors_ND = 2 * factors_ND - 1 if negative_eigenvalues else factors_ND
        state_ND = factors_ND * state_ND + jnp.outer(b_N, dt_D * x_D)
        return state_ND, c_N @ state_ND

    return recur(step, (x_TD, dt_TD, b_TN, c_TN), **start)


def diagonal_scan(b_TN: Inexact[Array, "T N"], a_TN: Inexact[Array, "T N"], **start):
    """Diagonal recurrence: h_t = a_t * h_{t-1} + b_t, real or complex; every h_t is an output.

    LRU (Orvieto et al. 2023, arXiv:2303.06349) and S5 (Smith et al. 2022, arXiv:2208.04933).
    """

    def step(state_N, b_N, a_N):
        state_N = a_N * state_N + b_N
        return state_N, state_N

    return recur(step, (b_TN, a_TN), **start)


def slstm(gates_TX, kernel_KX, **start):
    """sLSTM (Beck et al. 2024, arXiv:2405.04517, equations 8-14): the state is c, n and h."""

    def step(state_3K, gates_X):
        c_K, n_K, h_K = state_3K
        z_K, i_K, f_K, o_K = jnp.split(gates_X + h_K @ kernel_KX, 4)
        c_K = jax.nn.sigmoid(f_K) * c_K + jnp.exp(i_K) * jnp.tanh(z_K)
        n_K = jax.nn.sigmoid(f_K) * n_K + jnp.exp(i_K)
        h_K = jax.nn.sigmoid(o_K) * c_K / n_K
        return jnp.stack([c_K, n_K, h_K]), h_K

    return recur(step, (gates_TX,), **start)


def log_linear_attention(q_TK, k_TK, v_TV, scales_TM, log_decay_T):
    """Linear attention with a weight for each level: one more than the highest bit of t xor s.

    Log-linear attention (Guo et al. 2025, arXiv:2506.04761, equation 4).
    """
    t = np.arange(len(q_TK))
    levels_TT = np.frexp(t[:, None] ^ t)[1]  # number of bits
    sums_T = jnp.cumsum(log_decay_T)
    decays_TT = jnp.exp(jnp.minimum(sums_T[:, None] - sums_T, 0))
    weights_TT = jnp.take_along_axis(scales_TM, levels_TT, axis=1) * decays_TT
    return jnp.tril(weights_TT * (q_TK @ k_TK.T)) @ v_TV


def efficient_attention(q_TK, k_SK, v_SV, visible_TS):
    """Efficient attention: o_t = sum_f softmax(q_t)_f sum_s softmax_s(k_sf) v_s.

    Shen et al. 2021 (arXiv:1812.01243), section 3.  The second softmax is over the visible keys:
    each feature has its own normaliser.
    """
    maps_TSK = jax.nn.softmax(k_SK[None], axis=1, where=visible_TS[..., None])
    return jnp.einsum("tk,tsk,sv->tv", jax.nn.softmax(q_TK), maps_TSK, v_SV)


def scaled_efficient_attention(q_TK, k_SK, v_SV):
    """Efficient attention with scaling: o_t = q_t^T (K^T V) / n, n keys (Shen et al. 2021)."""
    return q_TK @ (k_SK.T @ v_SV) / len(k_SK)


def log_feature_attention(q_TK, k_SK, v_SV, visible_TS):
    """Attention with weights sum_f exp(q_tf) exp(k_sf), divided by their sum over the visible keys.

    FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794), given the logarithms of its random features.
    """
    scores_TS = jax.nn.logsumexp(q_TK[:, None] + k_SK, axis=-1)
    return jax.nn.softmax(scores_TS, where=visible_TS) @ v_SV


def softmax_attention(q_TK, k_SK, v_SV, visible_TS, *, scale=None, bias_TS: Array | float = 0.0):
    """Softmax attention over the visible keys (Vaswani et al. 2017, arXiv:1706.03762)."""
    scores_TS = (q_TK.shape[1] ** -0.5 if scale is None else scale) * q_TK @ k_SK.T + bias_TS
    return jax.nn.softmax(scores_TS, where=visible_TS) @ v_SV


def forgetting_attention(q_TK, k_TK, v_TV, log_forget_T, visible_TT):
    """Softmax attention; the log forget gates from s + 1 to t are added to the score of t and s.

    Forgetting Transformer (Lin et al. 2025, arXiv:2503.02130).
    """
    sums_T = jnp.cumsum(log_forget_T)
    bias_TT = sums_T[:, None] - sums_T
    return softmax_attention(q_TK, k_TK, v_TV, visible_TT, bias_TS=bias_TT)


def rectified_attention(q_TK, k_SK, v_SV, visible_TS, *, scale=None, power=1, bias_TS=0.0):
    """Rectified attention: o_t = sum_s max(a q_t.k_s + b_ts, 0)^p v_s over the visible keys.

    There is no normaliser.  With p = 1 and no bias this is ReLA (Zhang, Titov and Sennrich 2021,
    equation 5), with p = 2 and a bias by distance the gated attention unit (Hua et al. 2022,
    arXiv:2202.10447, section 3.1).
    """
    scores_TS = (q_TK.shape[1] ** -0.5 if scale is None else scale) * q_TK @ k_SK.T + bias_TS
    return jnp.where(visible_TS, jax.nn.relu(scores_TS) ** power, 0) @ v_SV


def block_local_attention(q_TK, k_TK, v_TV, visible_TT, *, block_size, scores="softmax"):
    """Softmax or rectified attention to the keys of the query's own block of the sequence.

    DiagAttention (Qin et al. 2022, arXiv:2210.10340, section 4.2).
    """
    block_T = jnp.arange(len(q_TK)) // block_size
    attend = softmax_attention if scores == "softmax" else rectified_attention
    return attend(q_TK, k_TK, v_TV, visible_TT & (block_T[:, None] == block_T))


def mixed_chunk_attention(
    q_TK, k_TK, linear_q_TK, linear_k_TK, v_TV, visible_TT, *, bias_TT, chunk_size, causal=True
):
    """Squared rectified attention within a chunk, and linear attention to the chunks before.

    FLASH (Hua et al. 2022, arXiv:2202.10447, section 3.2); the scores of both parts are divided by
    the C tokens of a chunk.  If not causal, the linear part attends to all keys.
    """
    chunk_T = jnp.arange(len(q_TK)) // chunk_size
    options = {"scale": 1 / chunk_size, "power": 2, "bias_TS": bias_TT}
    within_TT = visible_TT & (chunk_T[:, None] == chunk_T)
    o_TV = rectified_attention(q_TK, k_TK, v_TV, within_TT, **options)
    linear_TT = visible_TT & ((chunk_T[:, None] > chunk_T) if causal else True)
    return o_TV + jnp.where(linear_TT, linear_q_TK @ linear_k_TK.T, 0) / chunk_size @ v_TV


def lsh_attention(q_TK, v_TV, rotations_RKE, visible_TT, *, chunk_size, self_penalty=1e5):
    """LSH attention: softmax over the visible keys k = q / |q| of the query's bucket.

    Of each bucket a query sees itself and the last C keys before it.  Reformer (Kitaev, Kaiser and
    Levskaya 2020, arXiv:2001.04451, section 2): the outputs of the rounds are averaged, weighted by
    their sums of exponentials.  This is `chunking="window"` of `ops.hashing`.
    """
    projected_RTE = jnp.einsum("tk,rke->rte", q_TK, rotations_RKE)
    bucket_RT = jnp.argmax(jnp.concatenate([projected_RTE, -projected_RTE], axis=-1), axis=-1)
    same_RTT = visible_TT & (bucket_RT[:, :, None] == bucket_RT[:, None])
    # For each pair, the number of keys of the bucket from s + 1 up to t.
    between_RTT = jnp.cumsum(same_RTT[..., ::-1], axis=-1)[..., ::-1] - 1
    k_TK = q_TK / jnp.linalg.norm(q_TK, axis=-1, keepdims=True)
    scores_TT = q_TK @ k_TK.T * q_TK.shape[1] ** -0.5 - self_penalty * jnp.eye(len(q_TK))
    scores_RTT = jnp.where(same_RTT & (between_RTT <= chunk_size), scores_TT, -jnp.inf)
    sums_RT = jax.nn.logsumexp(scores_RTT, axis=-1)
    o_RTV = jnp.exp(scores_RTT - sums_RT[..., None]) @ v_TV
    return jnp.einsum("rt,rtv->tv", jax.nn.softmax(sums_RT, axis=0), o_RTV)
