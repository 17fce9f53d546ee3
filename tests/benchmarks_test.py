"""The benchmarks run and report; how fast they find things to be is not tested."""

import json
import subprocess

import pytest

from tests.training import runs

SMALL_MODEL = ("--layers=1", "--width=16", "--heads=2", "--feed_forward=32")
SMALL_ATTENTION = ("--lengths=64", "--heads=1", "--width=8")


def run(script: str, *flags: str) -> subprocess.CompletedProcess:
    return runs.execute(["-m", f"benchmarks.{script}", "--rounds=1", *flags])


# Every script is run whole once in a while; by default, one of each kind of report.
CASES = {
    "attention_skips": (
        "attention",
        ("--lengths=4097", "--heads=1", "--width=8", "--forms=chunk,recurrent"),
        "attention",
        2,
        "length",
    ),
    "train_step": ("train_step", (*SMALL_MODEL, "--shapes=2x32"), "train_step", 2, "tokens/s"),
    "decode_long": (
        "decode",
        (*SMALL_MODEL, "--long", "--long_tokens=40", "--segment=10"),
        "long",
        4,
        "us per token",
    ),
}
SLOW = {
    "attention": ("attention", SMALL_ATTENTION, "attention", 13, "ms"),
    "sweep": (
        "attention",
        (*SMALL_ATTENTION, "--sweep", "--chunk_sizes=16,32", "--chunks_per_block=1"),
        "sweep",
        2,
        "ms",
    ),
    "mechanisms": (
        "mechanisms",
        ("--names=katharopoulos", "--steps=4", "--dataset=embedded"),
        "mechanisms",
        1,
        "decoding tokens/s",
    ),
    "mechanisms_on_tpu": (
        "mechanisms_on_tpu",
        ("--names=katharopoulos", "--dataset=embedded"),
        "mechanisms",
        1,
        "FLOPs/token",
    ),
    "images": (
        "images",
        ("--small", "--methods=linear,softmax", "--lengths=3"),
        "images",
        2,
        "images/s",
    ),
    "lra": (
        "lra",
        ("--names=softmax,linear", "--lengths=32,64", "--scale=small"),
        "lra",
        4,
        "steps/s",
    ),
    "longest": ("longest", ("--lengths=64",), "curves", 5, "ms"),
    "non_local": ("non_local", ("--sizes=4,8", "--channels=4"), "non_local", 4, "ms"),
    "decode": ("decode", (*SMALL_MODEL, "--batches=1,2", "--steps=4"), "decode", 4, "tokens/s"),
    "versions": (
        "versions",
        ("--other=.", "--variants=linear", "--operators=delta", "--length=64"),
        "versions",
        6,
        "ratio",
    ),
    "decode_contexts": (
        "decode",
        (*SMALL_MODEL, "--contexts=64"),
        "contexts",
        2,
        "us per token",
    ),
}


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_prints_a_table_and_writes_json(name, tmp_path):
    script, flags, result, rows, column = (CASES | SLOW)[name]
    output, picture = tmp_path / "out.json", tmp_path / "long.png"
    if result == "long":
        flags = (*flags, f"--plot={picture}")
    done = run(script, *flags, f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert f"wrote {output}" in done.stdout
    report = json.loads(output.read_text())
    if result == "long":
        assert picture.read_bytes()[:4] == b"\x89PNG"
    assert f"-m benchmarks.{script}" in report["command"]
    for key in ("cpu", "cores"):
        assert report["hardware"][key]
    assert "jax" in report["versions"]
    assert {"date", "commit"} <= report.keys()
    assert len(report["results"][result]) == rows
    assert all(row[column] > 0 for row in report["results"][result])
    if name == "attention_skips":
        assert "skipped above 2,048" in report["results"][result][1]["note"]
        assert "skipped above 2,048" in done.stdout


@pytest.mark.parametrize(
    ("script", "argument", "message"),
    [
        ("attention", "--forms=nope", "flag --forms=['nope']: must be among chunk, "),
        ("attention", "--peers=nope", "--peers=nope: choose from"),
        ("attention", "--chunk_sizes=1.5", "flag --chunk_sizes=['1.5']: must be whole numbers"),
        ("attention", "--lengths=64,0", "flag --lengths=['64', '0']: must be whole numbers"),
        ("train_step", "--shapes=8", "--shapes=8: write batch x tokens"),
        ("decode", "--mixers=nope", "flag --mixers=['nope']: must be among linear, softmax"),
        ("non_local", "--sizes=nope", "flag --sizes=['nope']: must be whole numbers"),
        ("versions", "--other=nope", "--other=nope: there is no"),
        ("versions", "--operators=nope", "--operators=nope: must be among chunk, "),
        ("lra", "--plot=/no/folder.png", "/no/folder.png: cannot be written"),
        ("scaling", "--mechanism=nope", "flag --mechanism=nope: value should be one of"),
        ("scaling", "--sizes=nope", "flag --sizes=['nope']: must be among 125m, "),
        ("kernels", "--lengths=a", "flag --lengths=['a']: must be whole numbers"),
        # Where that is all that starts the script by default.
        *((name, "nope", "argument 'nope'") for name in ("images", "longest", "lra", "mechanisms")),
    ],
)
def test_a_mistake_is_one_line(script, argument, message):
    done = runs.execute(["-m", f"benchmarks.{script}", argument])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
