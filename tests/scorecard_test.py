"""The scorecard: its runs, the best learning rate, one row for every mechanism."""

import json
import pathlib

import pytest
from etils import epath

from configs import mechanisms
from configs.scorecard import task as tasks
from linear_transformer import scorecard
from linear_transformer.errors import ConfigError
from linear_transformer.reports import launch
from linear_transformer.reports.page import sortable_page
from linear_transformer.reports.runs import find, flatten
from linear_transformer.reports.tables import PAPER
from linear_transformer.runtime import environment
from tests.reports import folders
from tests.training import runs

HARDWARE = {"devices": "1 x cpu", "cores": 1, "cpu": "a CPU"}


@pytest.fixture
def found(tmp_path):
    """MQAR with gla at two rates, of which the second is better; sizes and speeds of gla."""
    row = scorecard.table(["gla"], ["mqar"], tasks.RATES).rows[0]
    for point, accuracy in zip(row.paper[0].points(), (0.5, 0.75), strict=False):
        folders.write_run(tmp_path / point.folder(), point, {"accuracy": accuracy}, step=600)
    facts = {"name": "gla", "parameters": 837_248, "state bytes": 32_788}
    facts |= {"training tokens/s": 25_870.4, "decoding tokens/s": 18_532.0}
    work = {"name": "gla", "FLOPs/token": 6_752_032.0, "HBM bytes/token": 158_175.2}
    for number, row in enumerate((facts, work)):
        content = {"command": f"c{number}", "date": f"2026-01-01 0{number}:00 UTC"}
        content |= {"hardware": HARDWARE, "results": {"mechanisms": [row]}}
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    return find([tmp_path])


def test_the_best_rate_and_every_mechanism(found, tmp_path):
    card = scorecard.Scorecard.read(found)
    lines = card.markdown().splitlines()
    assert {line.split("`")[1] for line in lines[2:]} == set(mechanisms.NAMES)
    (gla,) = (line for line in lines if line.startswith("| `gla` "))
    facts = ["837,248", "32,788", "25,870", "18,532", "6,752,032", "158,175"]
    cells = ["not run", "not run", "75.0 (0.001, of 2)", *["not run"] * 3, *facts]
    assert gla == f"| `gla` | {' | '.join(cells)} |"
    card.plot(epath.Path(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_has_values_to_sort_by_and_sources(found):
    card = scorecard.Scorecard.read(found)
    page = sortable_page("<T>", "", ("a", "b & c"), card.entries())
    assert "<h1>&lt;T&gt;</h1>" in page and "<th>b &amp; c</th>" in page
    (gla,) = (line for line in page.splitlines() if line.startswith('<tr><td data-value="gla">'))
    assert '<td>not run</td><td data-value="75.0" title="python train.py --config=' in gla
    assert '<td data-value="158175.2">158,175</td>' in gla


def test_the_days_and_machines_of_runs_and_benchmarks(found, tmp_path):
    benchmarks = "".join(f"`c{n}`: 2026-01-01, 1 x cpu, 1 core a CPU.\n\n" for n in range(2))
    assert scorecard.Scorecard.read(found).origin() == benchmarks
    for number, path in enumerate(sorted(tmp_path.rglob("config.json"))):
        where = {"date": f"2026-12-0{1 + number} 02:27 UTC", "hardware": HARDWARE}
        path.with_name(environment.FILE).write_text(json.dumps(where))
    origin = scorecard.Scorecard.read(find([tmp_path])).origin()
    assert origin == f"Runs: 2026-12-01, each on 1 x cpu, 1 core a CPU.\n\n{benchmarks}"


def test_first_rates_come_first(found, tmp_path):
    """One job for each run, though two columns read one run and two grids share a rate."""
    names = ["gla", "linear"]
    wanted = [scorecard.table(names, ["mqar", "shakespeare"], tasks.RATES[:n]) for n in (1, 2)]
    planned = [job for table in wanted for job in launch.plan(table, PAPER, found, tmp_path)]
    jobs = launch.distinct(planned)
    assert [job.experiment.config.partition(":")[2] for job in jobs] == [
        *("shakespeare,gla", "shakespeare,linear", "mqar,linear"),
        *("shakespeare,gla", "shakespeare,linear", "mqar,linear"),
    ]
    assert [job.experiment.changes[scorecard.RATE] for job in jobs] == [3e-3] * 3 + [1e-3] * 3
    assert jobs[0].measures == [
        ("validation", "bits_per_byte"),
        ("validation", "bits_per_byte_at_1024"),
    ]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_tasks_are_configs(task):
    config = tasks.get_config(f"{task},gla")
    assert flatten(config)["num_steps"] == 600
    assert config.model.pattern == ("gla",)


def test_mistakes():
    with pytest.raises(ConfigError, match=r"=\.\.\.:sorting,gla: the variants are shakespeare"):
        tasks.get_config("sorting,gla")
    with pytest.raises(ConfigError, match="the nearest are gla"):
        tasks.get_config("mqar,glaa")


def test_the_command(tmp_path):
    """Mistakes are one line and status 2; a dry run runs nothing; the document is written."""
    module = ["-m", "linear_transformer.scorecard", f"--runs={tmp_path}"]
    wrong = runs.execute([*module, "--tasks=sorting"])
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --tasks=sorting: choose from shakespeare, mqar")
    missing = runs.execute([*module[:2], f"--runs={tmp_path}/none"])
    assert missing.returncode == 2
    assert missing.stderr == f"error: --runs={tmp_path}/none: no such folder\n"
    plan = ["--launch", "--dry_run", "--names=gla", "--tasks=s3", "--rates=2"]
    wanted = scorecard.table(["gla"], ["s3"], tasks.RATES[:2])
    jobs = launch.plan(wanted, PAPER, launch.search(tmp_path), tmp_path)  # what no record has
    output = tmp_path / "card.md"
    done = runs.execute([*module, *plan, f"--output={output}"])
    assert done.returncode == 0, done.stderr
    assert f"{len(jobs)} to run; " in done.stdout
    written, picture, link = output.read_text().rsplit("\n\n", 2)
    assert written in done.stdout and link == "[The same table, to be sorted](card.html)\n"
    assert picture.endswith("](card.png)") and output.with_suffix(".png").exists()
    assert output.with_suffix(".html").read_text().startswith("<!doctype html>")
    assert output.read_text().startswith("# Scorecard\n")


def test_the_page_has_every_mechanism():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "scorecard.md").read_text()
    assert {n for n in mechanisms.NAMES if f"\n| `{n}` | " not in page} == set()
