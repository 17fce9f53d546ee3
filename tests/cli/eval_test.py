"""eval.py as a user runs it."""

import json
import shutil

import pytest

from tests.cli.train_test import assert_one_line
from tests.training import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Text and run are in one folder; the run is short and has a sampled final number."""
    folder = tmp_path_factory.mktemp("eval")
    config = runs.make_config(
        runs.write_text(folder / "text"), num_steps=4, final_evaluation=True, ema_decay=0.5
    )
    runs.run(config, folder / "run")
    return folder / "run"


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_number_of_the_training_run(trained):
    """Exactly train's last number, from the folder alone, which is otherwise left as it is."""
    before = files(trained)
    result = runs.execute(["eval.py", f"--workdir={trained}"])
    assert (result.returncode, result.stderr) == (0, "")
    record = json.loads((trained / "eval-validation.json").read_text())
    assert record["step"] == 4
    final = runs.curve(trained, "validation")[-1]
    for name in ("bits_per_byte", "perplexity", "tokens"):
        assert record["metrics"][name] == final[name]
    assert f"{final['bits_per_byte']:.4f}" in result.stdout
    after = files(trained)
    del after[trained / "eval-validation.json"]
    assert after == before


def test_another_split_without_state(trained):
    result = runs.execute(["eval.py", f"--workdir={trained}", "--split=test", "--nostateful"])
    assert (result.returncode, result.stderr) == (0, "")
    metrics = json.loads((trained / "eval-test.json").read_text())["metrics"]
    assert metrics.keys() == {"bits_per_byte", "perplexity", "tokens"}


def test_sample_is_the_seeds(trained):
    def sample(*arguments):
        prompt = ["eval.py", f"--workdir={trained}", "--prompt=when shall", "--num_tokens=40"]
        result = runs.execute([*prompt, *arguments])
        assert (result.returncode, result.stderr) == (0, "")
        text, _, speed = result.stdout.partition("\n--- ")
        assert text.startswith("when shall")
        assert speed.startswith("40 tokens in ")
        return text

    first = sample("--seed=1")
    assert sample("--seed=1") == first
    assert sample("--seed=2") != first


MISTAKES = {
    "no workdir": ([], "--workdir"),
    "missing run": (["--workdir=DIR/nope"], "DIR/nope"),
    "split": (["--workdir=DIR/run", "--split=dev"], "dev"),
    "no checkpoint": (["--workdir=DIR/early"], "DIR/early"),
    "temperature": (["--workdir=DIR/run", "--prompt=a", "--temperature=-1"], "--temperature"),
    "no number": (["--workdir=DIR/run", "--prompt=a", "--temperature=nan"], "--temperature=nan"),
    "prompt": (["--workdir=DIR/run", "--prompt=\udcff"], "--prompt=\\udcff: not UTF-8"),
    "seed": (["--workdir=DIR/run", "--prompt=a", f"--seed={2**64}"], f"--seed={2**64}"),
    "type": (["--workdir=DIR/run", "--prompt=a", "--num_tokens=x"], "--num_tokens=x"),
    "positional argument": (["DIR/run", "--workdir=DIR/run"], "DIR/run"),
    "unknown flag": (["--workdir=DIR/run", "--config=configs/default.py"], "config"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, trained):
    folder = trained.parent
    (folder / "early").mkdir(exist_ok=True)
    shutil.copy(trained / "config.json", folder / "early")
    arguments, expected = MISTAKES[name]
    given = [argument.replace("DIR", str(folder)) for argument in arguments]
    assert_one_line(runs.execute(["eval.py", *given]), expected.replace("DIR", str(folder)))
    assert not (folder / "nope").exists()
