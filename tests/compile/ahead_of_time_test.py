"""Steps compiled for TPUs that are not there; libtpu, of requirements-dev.txt, is the compiler."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import default, mechanisms
from configs.lm import scale
from linear_transformer.compile import ahead_of_time, compiled_program
from linear_transformer.errors import ConfigError
from linear_transformer.nn.rngs import ParameterRngs
from linear_transformer.runtime import accelerators
from linear_transformer.training.build import make_task
from tests.compile.effort import compiler_effort
from tests.training import runs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libtpu is for Linux"),
    pytest.mark.tpu_compile,
]


@pytest.fixture(scope="module", autouse=True)
def _environment():
    accelerators.prepare_environment()
    with compiler_effort(-1.0):
        yield


def described(topology, num_slices=1):
    return accelerators.describe_devices(topology, num_slices)


def model_of(config):
    task = make_task(config)
    return nnx.eval_shape(lambda: task.make_model(ParameterRngs(0)))


def small(name="linear", **changes):
    """The quick start's model, two layers in a scan, bf16, with AdamW."""
    config = default.get_config(name, num_layers=2)
    config.data.update(batch_size=8, sequence_length=1024)
    config.model.update(dtype="bfloat16", remat="full")
    config.model.scan_layers = config.model.num_layers % len(config.model.pattern) == 0
    config.optimizer.update(name="adamw")
    for key, value in changes.items():
        part, _, name = key.partition("__")
        config[part][name] = value
    return config


def compile_for_one(function, *shapes):
    mesh = Mesh(np.array(described("v5e:1x1")), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    specs = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=sharding) for s in shapes]
    return jax.jit(function).lower(*specs).compile()


@pytest.fixture(scope="module")
def sharded():
    """On 2 x 2 devices: a part of rows and of parameters each."""
    config = small(mesh__data=2, mesh__fsdp=2)
    return ahead_of_time.compile_training_step(config, described("v5e:2x2"))


def test_a_sharded_step(sharded):
    assert sharded.fits
    assert sharded.mesh.shape == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert {"all-gather", "reduce-scatter", "all-reduce"} >= sharded.cost.collectives.keys()
    assert sharded.cost.collectives["all-gather"][0] > 0
    assert sharded.cost.unknown_loops == 0
    assert sharded.cost.kernels == 0  # heads of 32 numbers
    assert sharded.memory["alias"] > 0.9 * sharded.memory["output"]  # the state is donated


def test_flops_are_those_of_the_formula(sharded):
    """With the forward pass again in the backward one.

    Left out of the formula is the masked half of a chunk; the program has no second pass of the
    output layer.
    """
    config = small()
    model = model_of(config)
    expected = 4 * model.flops_per_token(1024) * 8 * 1024 / 4
    assert sharded.cost.flops == pytest.approx(expected, rel=0.1)
    # XLA's own count has each loop once: two layers, and the chunks of the sequence.
    assert sharded.counted_once["flops"] < 0.8 * sharded.cost.flops


@pytest.mark.slow
def test_heads_and_parameters_are_both_split():
    """Two layers at the width of 1b: "tensor" adds sums of activations, and undoes no split."""
    config = scale.get_config("linear,1b")
    config.model.num_layers = 2
    config.mesh.update(fsdp=4, tensor=4)
    report = ahead_of_time.compile_training_step(config, described("v5e:4x4"))
    model = model_of(config)
    sent = {kind: size for kind, (_, size) in report.cost.collectives.items()}
    rows = config.data.batch_size // 4
    activations = 2 * rows * config.data.sequence_length * config.model.width  # bf16
    # Of each layer two sums forwards, one of them again, and two backwards.
    assert sent["all-reduce"] == pytest.approx(2 * (2 + 1 + 2) * activations, rel=0.05)
    # A quarter of each parameter in bf16, forwards and again; small ones are whole.
    assert sent["all-gather"] == pytest.approx(2 * 2 * model.num_parameters / 4, rel=0.05)
    assert sent["collective-permute"] + sent["all-to-all"] < 0.1 * activations


@pytest.mark.parametrize(
    "name",
    [
        "hgrn2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mamba", "mamba2", "delta_product")),
    ],
)
def test_features_stay_where_they_are_made(name):
    """Over "tensor" devices add up activations and exchange hardly anything else.

    A projection of several things at once, or steps in front of heads, would cross devices: that
    was as much as the sums, or twice.
    """
    config = small(name, data__sequence_length=256, mesh__data=1, mesh__tensor=4)
    config.model.update(width=512, num_heads=4)
    report = ahead_of_time.compile_training_step(config, described("v5e:2x2"))
    sent = {kind: size for kind, (_, size) in report.cost.collectives.items()}
    sums = sent.pop("all-reduce")
    assert sum(sent.values()) < 0.3 * sums  # B and C of Mamba-2 are gathered


@pytest.mark.slow
def test_two_slices(sharded):
    """Twice the devices and rows; a device has the same work."""
    config = small(data__batch_size=16, mesh__data=4, mesh__fsdp=2)
    two = ahead_of_time.compile_training_step(config, described("v5e:2x2", 2))
    slices = [device.slice_index for device in two.mesh.devices.flat]
    assert slices == [0] * 4 + [1] * 4
    assert two.fits
    assert two.cost.collectives
    assert two.cost.flops == pytest.approx(sharded.cost.flops, rel=0.02)


def a_row_over_eight(topology, num_slices, length):
    config = small(data__batch_size=1, data__sequence_length=length, model__max_positions=length)
    config.mesh.update(data=1, sequence=8)
    return ahead_of_time.compile_training_step(config, described(topology, num_slices))


def test_messages_of_a_shared_row():
    """Of each layer forwards, again in the backward pass, and backwards.

    A state in 1 + log2(8) rounds, and the tokens that the convolution reaches back to.
    """
    report = a_row_over_eight("v5e:2x4", 1, 2**13)
    count, sent = report.cost.collectives["collective-permute"]
    assert count == 2 * 3 * (1 + 3 + 1)
    config = small()
    heads, width = config.model.num_heads, config.model.width
    state = 4 * heads * (width // heads) * (width // heads + 1)
    halo = 2 * (config.model.mixers.linear.convolution - 1) * 3 * width  # bf16, of q, k and v
    assert sent == pytest.approx(2 * 3 * ((1 + 3) * state + halo), rel=0.05)


@pytest.mark.slow
def test_a_row_over_two_slices():
    """What 8 chips tell each other is the same of 8k as of 64k tokens, within and across slices."""
    with compiler_effort(0.0):
        short, long = (a_row_over_eight("v5e:2x2", 2, length) for length in (2**13, 2**16))
    assert short.fits and long.fits
    assert long.cost.collectives == short.cost.collectives
    # All messages of the last round go from one slice to the other.
    assert short.cost.collectives["collective-permute"][0] == 2 * 3 * (1 + 2 + 1)
    assert short.cost.collectives["send"][0] > 2 * 3 * (1 + 3 + 1)  # gradients too
    # A chip has 8,192 tokens instead of 1,024.
    assert long.memory["temp"] < 2 * short.memory["temp"]


def test_too_large_is_told():
    """Negative control: 64 rows of 65,536 tokens on one chip, with everything kept."""
    config = small(data__batch_size=64, data__sequence_length=65_536, model__remat="none")
    report = ahead_of_time.compile_training_step(config, described("v5e:1x1"))
    assert not report.fits
    assert "exceeds available HBM (15.75G)" in report.refusal
    assert report.lines()["fits"].startswith("no: ")


def test_too_large_by_a_smaller_chip(sharded):
    """A program that one chip holds and another does not."""
    tiny = accelerators.Accelerator("tiny", 1e12, sharded.hbm_bytes - 1, 1e9)
    assert not ahead_of_time.dataclasses.replace(sharded, accelerator=tiny).fits


@pytest.mark.parametrize(
    ("topology", "axes"),
    [
        pytest.param("v5e:1x1", {"data": 1}, marks=pytest.mark.slow),
        ("v5e:2x2", {"data": 1, "fsdp": 2, "sequence": 2}),
    ],
)
def test_chips_run_the_kernel(topology, axes):
    """`form="auto"` chooses for the described devices: heads of 128 numbers."""
    config = small(model__num_heads=1, data__batch_size=2, data__sequence_length=2048)
    config.model.max_positions = 2048
    config.mesh.update(axes)
    report = ahead_of_time.compile_training_step(config, described(topology))
    assert report.fits
    assert report.cost.kernels >= 2  # forward and backward, in a loop over layers
    assert "kernels" in report.lines()


def test_heads_that_are_split_run_no_kernel():
    """The compiler splits over "tensor", and knows no way to split a kernel."""
    config = small(model__num_heads=2, model__width=256, mesh__data=1, mesh__tensor=2)
    report = ahead_of_time.compile_training_step(config, described("v5e:2x2"))
    assert report.fits
    assert report.cost.kernels == 0


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_decoding(name):
    config = small(name)
    report = ahead_of_time.compile_decoding_step(config, described("v6e:2x2"))
    assert report.fits
    assert report.accelerator.name == "TPU v6e"
    assert not report.cost.collectives  # every device has its rows and all parameters
    model = model_of(config)
    # One query is no matmul: XLA multiplies and sums, and only the projections are counted.
    assert report.cost.flops == pytest.approx(2 * model.num_parameters * 8 / 4, rel=0.05)


def test_an_evaluation(sharded):
    """Parameters are gathered once, and no gradients are scattered."""
    report = ahead_of_time.compile_evaluation(
        small(mesh__data=2, mesh__fsdp=2), described("v5e:2x2")
    )
    assert report.fits
    assert report.mesh.shape == sharded.mesh.shape
    assert report.cost.flops == pytest.approx(sharded.cost.flops / 4, rel=0.1)
    sent = {kind: size for kind, (_, size) in report.cost.collectives.items()}
    assert sent.keys() == {"all-gather", "all-reduce"}
    assert sent["all-gather"] < 0.6 * sharded.cost.collectives["all-gather"][1]


def test_command_lines(tmp_path):
    """Exit status 0, 1 and 2; nothing on stderr but one line."""
    one = ["--compile_only", "--topology=v5e:1x1"]
    decode = runs.arguments(small(), tmp_path)[2:]
    large = "--config.data.batch_size=4194304"
    commands = {
        "fits": ["eval.py", *one, *decode],
        "evaluation": ["train.py", *one, *decode, "--program=eval"],
        "large": ["eval.py", *one, *decode, large],
        "topology": ["train.py", "--compile_only", "--topology=v5e:big"],
        "none": ["train.py", "--compile_only"],
        "hosts": ["train.py", "--compile_only", "--topology=v5e:0x0"],
        "mesh": ["train.py", *one, "--config.mesh.data=3"],
        "slices": ["train.py", *one, "--num_slices=0"],
        "no decoding": ["eval.py", *one, "--config=configs/lra/image.py:linear,quick"],
    }
    results = {name: runs.execute(given) for name, given in commands.items()}
    for name, program in (("fits", "decoding step of 8 rows"), ("evaluation", "forward pass")):
        assert results[name].returncode == 0, results[name].stderr
        assert results[name].stderr == ""
        assert f"program:       {program}" in results[name].stdout
        assert "fits:          yes" in results[name].stdout
    assert results["large"].returncode == 1
    assert "fits:          no" in results["large"].stdout
    errors = {
        "large": "does not fit on v5e:1x1",
        "topology": "--topology=v5e:big",
        "none": "--topology",
        "hosts": "--topology=v5e:0x0",
        "mesh": "config.mesh",
        "slices": "--num_slices=0",
        "no decoding": "--program=decode",
    }
    for name, expected in errors.items():
        (line,) = results[name].stderr.splitlines()
        assert line.startswith("error: ")
        assert expected in line
        assert results[name].returncode == (1 if name == "large" else 2)
    assert not (tmp_path / "run").exists()


def test_missing_libtpu_is_named(monkeypatch):
    monkeypatch.setattr(accelerators.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "jax\[tpu\]"'):
        described("v5e:2x2")


@pytest.mark.parametrize(
    ("topology", "devices", "name"),
    [
        ("v4:2x2x1", 4, "TPU v4"),
        ("v5e:4x4", 16, "TPU v5e"),
        ("v5e:1x1", 1, "TPU v5e"),
        ("v5p:2x2x2", 8, "TPU v5p"),
        ("v6e:2x4", 8, "TPU v6e"),
        ("tpu7x:2x2x1", 8, "TPU7x, half a chip"),
    ],
)
def test_topologies(topology, devices, name):
    found = described(topology)
    assert len(found) == devices
    assert accelerators.find(found[0].device_kind).name == name


def test_loops_count_as_often_as_they_run():
    """Of a scan of matmuls, and of the same matmuls one by one."""
    shape, times = (256, 256), 12

    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=times)[0]

    def unrolled(x, w):
        for _ in range(times):
            x = jnp.tanh(x @ w)
        return x

    in_a_loop, one_by_one = (compile_for_one(f, shape, shape) for f in (scanned, unrolled))
    exact = 2 * 256**3 * times
    assert compiled_program.cost(in_a_loop.as_text()).flops == exact
    assert compiled_program.cost(one_by_one.as_text()).flops == exact
    # The compiler counts elements too, and the loop's body once.
    assert one_by_one.cost_analysis()["flops"] == pytest.approx(exact, rel=0.01)
    assert in_a_loop.cost_analysis()["flops"] == pytest.approx(exact / times, rel=0.01)


def test_matmuls_with_a_batch_of_their_own():
    """They are convolutions with padding on a TPU; the padding does not count."""
    program = compile_for_one(lambda a, b: a @ b, (6, 128, 256), (6, 256, 64))
    found = compiled_program.cost(program.as_text())
    assert found.flops == 2 * 6 * 128 * 256 * 64
    arrays = 2 * 6 * (128 * 256 + 256 * 64 + 128 * 64)
    assert found.hbm_bytes == arrays
    assert not found.collectives


def test_a_slice_is_what_is_read():
    """A scan over stacked matrices reads each once, and keeps x on the chip."""
    stacked, x = (16, 1024, 1024), (256, 1024)
    with compiler_effort(0.0):
        program = compile_for_one(
            lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], stacked, x
        )
    found = compiled_program.cost(program.as_text())
    least = 2 * (16 * 1024**2 + 2 * 256 * 1024)
    assert least <= found.hbm_bytes < 1.1 * least


@pytest.mark.slow
@pytest.mark.parametrize("name", mechanisms.NAMES)
def test_every_mechanism(name):
    config = small(name)
    assert ahead_of_time.compile_training_step(config, described("v5e:2x2")).fits
    assert ahead_of_time.compile_decoding_step(config, described("v5e:2x2")).fits


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("name", ["linear", "gla", "gated_delta_net", "softmax"])
def test_other_chips(name, topology):
    assert ahead_of_time.compile_training_step(small(name), described(topology)).fits
