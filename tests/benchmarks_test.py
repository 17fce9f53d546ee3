"""The benchmarks run and report; how fast they find things to be is not tested."""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parent.parent
SMALL_MODEL = ("--layers=1", "--width=16", "--heads=2", "--feed_forward=32")
SMALL_ATTENTION = ("--lengths=64", "--heads=1", "--width=8")


def run(script: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--rounds=1", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


class BenchmarksTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("attention", "attention", SMALL_ATTENTION, "attention", 13, "ms"),
        (
            "attention_skips",
            "attention",
            ("--lengths=4097", "--heads=1", "--width=8", "--forms=chunk,recurrent"),
            "attention",
            2,
            "length",
        ),
        (
            "sweep",
            "attention",
            (*SMALL_ATTENTION, "--sweep", "--chunk_sizes=16,32", "--chunks_per_block=1"),
            "sweep",
            2,
            "ms",
        ),
        ("train_step", "train_step", (*SMALL_MODEL, "--shapes=2x32"), "train_step", 2, "tokens/s"),
        (
            "mechanisms",
            "mechanisms",
            ("--names=katharopoulos", "--steps=4", "--dataset=embedded"),
            "mechanisms",
            1,
            "decoding tokens/s",
        ),
        (
            "images",
            "images",
            ("--small", "--methods=linear,softmax", "--lengths=3"),
            "images",
            2,
            "images/s",
        ),
        (
            "lra",
            "lra",
            ("--names=softmax,linear", "--lengths=32,64", "--scale=small"),
            "lra",
            4,
            "steps/s",
        ),
        ("longest", "longest", ("--lengths=64",), "curves", 5, "ms"),
        ("non_local", "non_local", ("--sizes=4,8", "--channels=4"), "non_local", 4, "ms"),
        (
            "decode",
            "decode",
            (*SMALL_MODEL, "--batches=1,2", "--steps=4"),
            "decode",
            4,
            "tokens/s",
        ),
        (
            "decode_contexts",
            "decode",
            (*SMALL_MODEL, "--contexts=64"),
            "contexts",
            2,
            "us per token",
        ),
        (
            "decode_long",
            "decode",
            (*SMALL_MODEL, "--long", "--long_tokens=40", "--segment=10"),
            "long",
            4,
            "us per token",
        ),
    )
    def test_prints_a_table_and_writes_json(self, script, flags, result, rows, column):
        with tempfile.TemporaryDirectory() as folder:
            output = pathlib.Path(folder, "out.json")
            if result == "long":
                picture = pathlib.Path(folder, "long.png")
                flags = (*flags, f"--plot={picture}")
            done = run(script, *flags, f"--output={output}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(f"wrote {output}", done.stdout)
            report = json.loads(output.read_text())
            if result == "long":
                self.assertEqual(picture.read_bytes()[:4], b"\x89PNG")
        self.assertIn(f"-m benchmarks.{script}", report["command"])
        for key in ("cpu", "cores"):
            self.assertTrue(report["hardware"][key])
        self.assertIn("jax", report["versions"])
        self.assertIn("date", report)
        self.assertIn("commit", report)
        self.assertLen(report["results"][result], rows)
        for row in report["results"][result]:
            self.assertGreater(row[column], 0)
        if "4097" in "".join(flags):
            self.assertIn("skipped above 2,048", report["results"][result][1]["note"])
            self.assertIn("skipped above 2,048", done.stdout)

    @parameterized.parameters(
        ("attention", "--forms=nope"),
        ("attention", "--peers=nope"),
        ("train_step", "--shapes=8"),
        ("decode", "--mixers=nope"),
        ("non_local", "--sizes=nope"),
    )
    def test_a_mistake_is_one_line(self, script, flag):
        done = run(script, flag)
        self.assertEqual(done.returncode, 2)
        self.assertIn(flag, done.stderr)
        self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    absltest.main()
