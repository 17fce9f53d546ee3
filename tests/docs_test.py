"""docs/adding_a_mechanism.md has the code of the shipped file, and its commands train the mixer."""

import re
import shlex

from tests.training import runs

PAGE = (runs.ROOT / "docs" / "adding_a_mechanism.md").read_text()
SMALLER = ["--config.model.num_layers=1", "--config.data.sequence_length=32"]
SMALLER += ["--config.final_evaluation=False", "--config.sample=False"]


def test_the_code_is_the_shipped_file():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shipped = runs.ROOT / "linear_transformer" / "nn" / "mixers" / "gated_slot_attention.py"
    assert code == shipped.read_text()


def test_the_commands_list_and_train_it(tmp_path):
    commands = re.findall(r"^    python (.*)$", PAGE, re.MULTILINE)
    listing, training = (shlex.split(command) for command in commands)
    done = runs.execute(listing)
    assert re.search(r"^gsa +softmax attention to slots", done.stdout, re.MULTILINE), done.stderr
    done = runs.execute([*training, f"--workdir={tmp_path}", *SMALLER])
    assert done.returncode == 0, done.stderr
    assert runs.records(tmp_path)[-1]["step"] == 20
