"""Exact softmax attention: forms against each other, and against the definition."""

import functools
import inspect
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from linear_transformer.ops import blockwise_softmax, naive, softmax
from linear_transformer.ops.softmax import softmax_attention
from tests.ops.contract import defined_attention, relative_rms

# fp64: products of 64 terms and sums over a few hundred keys leave a few hundred ulp at most.
# fp32: ulp 6e-8, and scores of up to ~10 turn an ulp of a score into 10 ulp of a weight.
TOLERANCE = {np.dtype("float64"): 1e-10, np.dtype("float32"): 2e-5}


def make_inputs(T, S=None, B=2, H=2, K=8, V=6, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    S = T if S is None else S
    shapes = ((B, T, H, K), (B, S, H, K), (B, S, H, V), (B, T, H, V))
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


@functools.partial(jax.jit, static_argnames=("options",))
def value_and_gradients(q, k, v, do, arrays, options):
    o, vjp = jax.vjp(lambda q, k, v: softmax_attention(q, k, v, **arrays, **dict(options)), q, k, v)
    return o, *vjp(do)


def run(inputs, arrays=None, **options):
    return value_and_gradients(*inputs, arrays or {}, tuple(sorted(options.items())))


def check_same(actual, expected, tolerance):
    """The one checker: value and each gradient; the negative controls must fail it."""
    for name, x, y in zip(("o", "dq", "dk", "dv"), actual, expected, strict=True):
        assert np.all(np.isfinite(np.asarray(x, np.float64))), f"{name} is not finite"
        # Gradients of softmax over a single key are 0: compare those by absolute size.
        error = relative_rms(x, y) if np.max(np.abs(y)) > 1e-9 else np.max(np.abs(x))
        assert error <= tolerance, f"{name}: relative RMS error {error:.3g} > {tolerance}"


SEGMENTS = np.array([[0] * 5 + [1] * 9 + [2] * 6, [3] * 13 + [0] * 7])
MASK = np.random.default_rng(7).random((2, 20)) < 0.6
MASK[0, :3] = False  # Queries 0, 1, 2 of row 0 see nothing when attention is causal.


# A mark of pytest goes below absl's parameters: above them it is lost.
class SoftmaxAttentionTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enterContext(jax.enable_x64(True))

    @parameterized.product(
        form=("parallel", "blockwise"), case=("causal", "bidirectional", "all", "cache", "cross")
    )
    def test_definition(self, form, case):
        self.check_definition(form, case)

    @parameterized.product(form=("parallel", "blockwise"), case=("window", "segments", "mask"))
    @pytest.mark.slow
    def test_definition_of_each(self, form, case):
        self.check_definition(form, case)

    def check_definition(self, form, case):
        T = S = 20
        t, s = np.arange(T)[None, :, None], np.arange(S)[None, None, :]
        allowed = np.broadcast_to(s <= t, (2, T, S))
        arrays, options = {}, {}
        inputs = make_inputs(T)
        if case == "bidirectional":
            options, allowed = {"direction": "bidirectional"}, np.ones((2, T, S), bool)
        if case in ("window", "all"):
            options, allowed = {"window": 4, "scale": 0.7}, allowed & (t - s < 4)
        if case in ("segments", "all"):
            arrays["segment_ids_BT"] = SEGMENTS
            allowed = allowed & (SEGMENTS[:, :, None] == SEGMENTS[:, None, :])
        if case in ("mask", "all"):
            arrays["key_mask_BS"] = MASK
            allowed = allowed & MASK[:, None, :]
        if case == "cache":  # A ring buffer: keys in any order, some slots empty.
            S = 31
            inputs = make_inputs(T, S)
            rng = np.random.default_rng(3)
            keys = np.stack([rng.permutation(S) - 4, rng.permutation(S) - 9])
            queries = np.stack([np.arange(T), np.arange(T) + 2])
            arrays = {"query_positions_BT": queries, "key_positions_BS": keys}
            options = {"window": 11}
            difference = queries[:, :, None] - keys[:, None, :]
            allowed = (keys[:, None] >= 0) & (difference >= 0) & (difference < 11)
        if case == "cross":
            S = 31
            inputs = make_inputs(T, S)
            segments = np.random.default_rng(3).integers(1, 4, (2, S))  # None is 0.
            arrays = {"segment_ids_BT": SEGMENTS, "key_segment_ids_BS": segments}
            options = {"direction": "bidirectional"}
            allowed = SEGMENTS[:, :, None] == segments[:, None, :]
        arrays = jax.tree.map(jnp.asarray, arrays)
        expected = defined_attention(
            functools.partial(naive.softmax_attention, scale=options.get("scale")),
            *inputs[:3],
            visible_BTS=allowed,
        )
        blocks = {"block_size": 7} if form == "blockwise" else {}
        actual = run(inputs, arrays, form=form, **blocks, **options)
        self.assertLess(relative_rms(actual[0], expected), 1e-12)
        empty = ~allowed.any(2)
        self.assertEqual(empty.any(), case in ("mask", "all", "cross"))
        self.assertEqual(np.abs(np.asarray(actual[0])[empty]).sum(), 0)
        self.assertEqual(np.abs(np.asarray(actual[1])[empty]).sum(), 0)
        check_same(actual, run(inputs, arrays, form="parallel", **options), 1e-10)

    @parameterized.product(T=(1, 64, 100), dtype=(np.float64, np.float32))
    def test_lengths(self, T, dtype):
        self.check_length(T, dtype)

    @parameterized.product(T=(2, 63, 257), dtype=(np.float64, np.float32))
    @pytest.mark.slow
    def test_more_lengths(self, T, dtype):
        self.check_length(T, dtype)

    def check_length(self, T, dtype):
        inputs = make_inputs(T, B=1, dtype=dtype)
        expected = run([x.astype(np.float64) for x in inputs], form="parallel")
        for block_size in (48, None) if T in (64, 257) else (48,):
            actual = run(inputs, form="blockwise", block_size=block_size)
            self.assertEqual({x.dtype for x in actual}, {np.dtype(dtype)})
            check_same(actual, expected, TOLERANCE[np.dtype(dtype)])

    @parameterized.parameters(
        (1, 300_000, "_parallel"), (500, 500, "_parallel"), (2000, 2000, "blockwise")
    )
    def test_auto(self, T, S, form):
        q, k = (jax.ShapeDtypeStruct((2, n, 2, 8), np.float32) for n in (T, S))
        attention = functools.partial(inspect.unwrap(softmax_attention), direction="bidirectional")
        with mock.patch.object(softmax, form, return_value=jnp.zeros(())) as called:
            jax.eval_shape(attention, q, k, k)
        called.assert_called_once()

    @parameterized.parameters(16, 17)
    def test_windows_over_many_blocks(self, window):
        self.check_window(window)

    @parameterized.parameters(1, 40)
    @pytest.mark.slow
    def test_more_windows(self, window):
        self.check_window(window)

    def check_window(self, window):
        inputs = make_inputs(150, B=1)
        expected = run(inputs, form="parallel", window=window)
        check_same(run(inputs, form="blockwise", block_size=16, window=window), expected, 1e-10)

    @pytest.mark.slow
    def test_every_head_and_row(self):
        inputs, heads_per_step = make_inputs(70, B=3, H=4), 2
        expected = run(inputs, form="parallel")
        jax.clear_caches()
        with mock.patch.object(blockwise_softmax, "_CPU_SCORES_PER_STEP", heads_per_step * 32 * 32):
            check_same(run(inputs, form="blockwise", block_size=32), expected, 1e-10)
        jax.clear_caches()

    @parameterized.parameters((1, 1), (2, 2), (1, 4))
    def test_heads_share_keys(self, key_heads, heads_per_step):
        """Keys of fewer heads are the same keys for each head of a group."""
        q, _, _, do = make_inputs(70, H=4)
        _, k, v, _ = make_inputs(70, H=key_heads, seed=1)
        repeated = (jnp.repeat(x, 4 // key_heads, axis=2) for x in (k, v))
        o, dq, *by_head = run((q, *repeated, do), form="parallel", window=40)
        shared = [x.reshape(*k.shape[:3], -1, x.shape[3]).sum(3) for x in by_head]
        jax.clear_caches()
        with mock.patch.object(blockwise_softmax, "_CPU_SCORES_PER_STEP", heads_per_step * 32 * 32):
            for form in ("parallel", "blockwise"):
                actual = run((q, k, v, do), form=form, block_size=32, window=40)
                check_same(actual, (o, dq, *shared), 1e-10)
        jax.clear_caches()

    def test_blocks_never_computed(self):
        def count(**options):
            spec = {"causal": True, "window": None, "scale": 1.0, "ordered": True, "masked": False}
            return [
                len(x)
                for x in blockwise_softmax._pairs(
                    64, 64, blockwise_softmax.Spec(block_size=16, **spec | options)
                )
            ]

        self.assertEqual(count(), [6, 4])
        self.assertEqual(count(masked=True), [0, 10])
        self.assertEqual(count(window=16), [0, 7])
        self.assertEqual(count(window=17), [0, 7])
        self.assertEqual(count(window=18), [0, 9])
        self.assertEqual(count(ordered=False, masked=True), [0, 16])
        self.assertEqual(count(causal=False), [16, 0])

    def test_memory_is_linear_and_program_size_constant(self):
        def compile_at(T):
            q = jax.ShapeDtypeStruct((1, T, 2, 16), np.float32)
            f = functools.partial(
                value_and_gradients, arrays={}, options=(("block_size", 128), ("form", "blockwise"))
            )
            lowered = jax.jit(f).lower(q, q, q, q)
            return lowered.as_text().count("\n"), lowered.compile().memory_analysis()

        (lines, memory), (lines4, memory4) = compile_at(2048), compile_at(8192)
        self.assertEqual(lines, lines4)
        self.assertLess(memory4.temp_size_in_bytes, 4.1 * memory.temp_size_in_bytes)
        self.assertLess(memory4.temp_size_in_bytes, 8192 * 8192)  # Scores: 8 times this.

    def test_masks_are_not_kept_for_the_backward_pass(self):
        """Under `jax.checkpoint` in a scan over layers, with documents in a row."""

        T = 4096
        layer = functools.partial(softmax_attention, form="blockwise", block_size=128)

        def loss(x, segments):
            f = jax.checkpoint(lambda x: layer(x, x, x, segment_ids_BT=segments))
            return jnp.sum(jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0])

        x = jax.ShapeDtypeStruct((1, T, 2, 16), np.float32)
        segments = jax.ShapeDtypeStruct((1, T), np.int32)
        memory = jax.jit(jax.grad(loss)).lower(x, segments).compile().memory_analysis()
        # The masks of the pairs that causality leaves, of two heads, are T (T + 128) bytes.
        self.assertLess(memory.temp_size_in_bytes, T * T / 2)

    @parameterized.parameters("parallel", "blockwise")
    def test_causal_and_packed_by_gradient(self, form):
        q, k, v, _ = make_inputs(20)
        segments = jnp.asarray(SEGMENTS)

        def output(k, v, t):
            o = softmax_attention(q, k, v, segment_ids_BT=segments, form=form, block_size=8)
            return jnp.sum(o[:, t] ** 2)

        gradient = jax.jit(jax.grad(output, (0, 1)))
        for t in (0, 4, 5, 13, 19):
            for d in gradient(k, v, t):
                reached = np.abs(np.asarray(d)).sum((2, 3)) > 0
                allowed = (np.arange(20) <= t) & (SEGMENTS[:, t : t + 1] == SEGMENTS)
                self.assertFalse(np.any(reached & ~allowed))  # Exactly 0.
                if d.shape == v.shape:
                    np.testing.assert_array_equal(reached, allowed)

    @parameterized.parameters("parallel", "blockwise")
    def test_no_key_at_all(self, form):
        inputs = make_inputs(20)
        actual = run(inputs, {"key_mask_BS": jnp.zeros((2, 20), bool)}, form=form, block_size=8)
        for x in actual:
            self.assertEqual(np.abs(np.asarray(x)).sum(), 0)

    @parameterized.parameters("parallel", "blockwise")
    def test_masked_keys_leave_no_trace(self, form):
        q, k, v, do = make_inputs(20)
        mask = jnp.asarray(MASK)
        hidden = ~mask[:, :, None, None]
        first = run((q, k, v, do), {"key_mask_BS": mask}, form=form, block_size=8)
        k, v = jnp.where(hidden, 1e6, k), jnp.where(hidden, -1e6, v)
        second = run((q, k, v, do), {"key_mask_BS": mask}, form=form, block_size=8)
        for x, y in zip(first, second, strict=True):
            np.testing.assert_array_equal(x, y)

    def test_bfloat16(self):
        options = {"direction": "causal", "window": 40}
        inputs = make_inputs(100, dtype=jnp.bfloat16)
        exact = run([x.astype(np.float64) for x in inputs], form="parallel", **options)
        for form in ("parallel", "blockwise"):
            actual = run(inputs, form=form, block_size=32, **options)
            self.assertEqual({x.dtype for x in actual}, {jnp.dtype(jnp.bfloat16)})
            # Half an ulp is 2**-9: of the weights before their product with v, of the scores'
            # gradient before its products, of o in the backward pass, and of each result.  They
            # are independent and at most 2**-9 each, so 4 of them stay below 2**-7.
            check_same(actual, exact, 2**-7)

    @parameterized.parameters("parallel", "blockwise")
    def test_growing_scores(self, form):
        q, k, v, do = make_inputs(100)
        k = k * jnp.linspace(0, 300, 100)[:, None, None]  # Scores to +-1000 overflow a plain exp.
        expected = run((q, k, v, do), form="parallel")
        blocks = {"block_size": 16} if form == "blockwise" else {}
        actual = run((q, k, v, do), form=form, **blocks)
        check_same(actual, expected, 1e-10)
        allowed = np.broadcast_to(np.tri(100, dtype=bool), (2, 100, 100))
        expected = defined_attention(naive.softmax_attention, q, k, v, visible_BTS=allowed)
        self.assertLess(relative_rms(actual[0], expected), 1e-12)

    def test_negative_control(self):
        self.check_negative_control("mask")

    @parameterized.parameters("correction", "delta")
    @pytest.mark.slow
    def test_more_negative_controls(self, broken):
        self.check_negative_control(broken)

    def check_negative_control(self, broken):
        q, k, v, do = make_inputs(100, H=1)
        k = k * jnp.linspace(0, 3, 100)[:, None, None]
        expected = run((q, k, v, do), form="parallel")
        options = {"form": "blockwise", "block_size": 16}
        check_same(run((q, k, v, do), **options), expected, 1e-10)
        allowed, exp = blockwise_softmax.allowed_pairs, jnp.exp

        def off_by_one(tags, spec):
            return allowed(tags._replace(queries=(tags.queries[0] - 1,)), spec)

        def uncorrected(x):  # The decay of what was summed before has one row; the weights have 16.
            return jnp.ones_like(x) if x.shape[2] == 1 else exp(x)

        patches = {
            "mask": mock.patch.object(blockwise_softmax, "allowed_pairs", off_by_one),
            "correction": mock.patch.object(
                blockwise_softmax, "jnp", types.SimpleNamespace(**vars(jnp) | {"exp": uncorrected})
            ),
            "delta": mock.patch.object(
                blockwise_softmax,
                "_backward",
                functools.partial(_without_delta, blockwise_softmax._backward),
            ),
        }
        jax.clear_caches()
        with patches[broken], self.assertRaisesRegex(AssertionError, "relative RMS error"):
            check_same(run((q, k, v, do), **options), expected, 1e-3)
        jax.clear_caches()

    def test_fused_passes_the_same_mask(self):
        """The GPU kernel cannot run here: its arguments go to the same function's XLA version."""
        inputs = make_inputs(40, K=8, V=8, dtype=jnp.bfloat16)
        kernel = jax.nn.dot_product_attention

        def xla(*args, implementation, **kwargs):
            self.assertEqual(implementation, "cudnn")
            return kernel(*args, implementation="xla", **kwargs)

        for options in ({}, {"window": 5}, {"direction": "bidirectional"}, {"scale": 0.5}):
            expected = run(inputs, form="parallel", **options)
            with (
                mock.patch.object(jax, "default_backend", lambda: "gpu"),
                mock.patch.object(jax.nn, "dot_product_attention", side_effect=xla) as called,
            ):
                for form in ("fused", "auto"):
                    o = softmax_attention(*inputs[:3], form=form, **options)
                    self.assertLess(relative_rms(o, expected[0]), 2**-7)
                with self.assertRaisesRegex(ValueError, "no positions, segments"):
                    mask = jnp.ones((2, 40), bool)
                    softmax_attention(*inputs[:3], form="fused", key_mask_BS=mask, **options)
            self.assertEqual(called.call_count, 2)

    @parameterized.parameters(
        ({"window": 0}, "window"),
        ({"window": 3, "direction": "bidirectional"}, "window"),
        ({"direction": "sideways"}, "direction"),
        ({"form": "magic"}, "form"),
        ({"form": "fused"}, "GPU"),
        ({"scale": 0.0}, "scale"),
        ({"block_size": 0}, "block_size"),
        ({"key_mask_BS": np.ones((2, 3), bool)}, "key_mask_BS"),
        ({"key_segment_ids_BS": np.ones((2, 4), int)}, "segment_ids_BT"),
    )
    def test_errors(self, options, message):
        # Unwrapped: run-time type checks, where the tests turn them on, would come first.
        q, k, v, _ = make_inputs(4)
        with self.assertRaisesRegex(ValueError, message):
            inspect.unwrap(softmax_attention)(q, k, v, **options)

    def test_shape_errors(self):
        q, k, v, _ = make_inputs(4, 5)
        with self.assertRaisesRegex(ValueError, "needs positions"):
            inspect.unwrap(softmax_attention)(q, k, v)
        with self.assertRaisesRegex(ValueError, "v_BSJV is"):
            inspect.unwrap(softmax_attention)(q, k, v[:, :4])
        with self.assertRaisesRegex(ValueError, "k_BSJK has 2 heads, which do not divide the 3"):
            inspect.unwrap(softmax_attention)(make_inputs(5, H=3)[0], k, v)

    @pytest.mark.slow
    def test_sweep(self):
        rng = np.random.default_rng(5)
        for T in (33, 129, 1030):
            for direction in ("causal", "bidirectional"):
                for block_size in (1, 16, 100, None):
                    if block_size == 1 and T > 100:
                        continue
                    inputs = make_inputs(T, B=2, seed=T)
                    segments = jnp.asarray(np.sort(rng.integers(0, 4, (2, T)), 1))
                    mask = jnp.asarray(rng.random((2, T)) < 0.8)
                    arrays = {"segment_ids_BT": segments, "key_mask_BS": mask}
                    expected = run(inputs, arrays, form="parallel", direction=direction)
                    options = {"direction": direction, "block_size": block_size}
                    check_same(run(inputs, arrays, form="blockwise", **options), expected, 1e-10)


def _without_delta(backward, residuals, do, **kwargs):
    *rest, o, lse = residuals
    return backward((*rest, jnp.zeros_like(o), lse), do, **kwargs)
