"""Traces of training steps."""

import jax
import pytest
from etils import epath

from linear_transformer.errors import ConfigError
from linear_transformer.training.loop import train
from linear_transformer.training.tracer import Tracer
from tests.training import runs


def steps_in(workdir):
    """The steps that a run's trace names, in order of their times."""
    (path,) = (workdir / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
    events = (event for plane in data.planes for line in plane.lines for event in line.events)
    found = {}
    for event in events:
        if event.name == "train":
            found[dict(event.stats)["step_num"]] = event.start_ns
    return sorted(found, key=found.get)


@pytest.mark.parametrize(
    ("given", "expected"), [("3:2", [3, 4]), pytest.param("4:9", [4, 5], marks=pytest.mark.slow)]
)
def test_the_steps_asked_for_are_in_the_trace(given, expected, text, tmp_path):
    """Of those that there are: the run ends after step 6."""
    workdir = epath.Path(tmp_path / "run")
    train(runs.make_config(text, num_steps=6), workdir, Tracer.parse(given, workdir))
    assert steps_in(tmp_path / "run") == expected


def test_no_trace_without_its_steps(text, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    train(runs.make_config(text, num_steps=2), workdir, Tracer.parse("5:1", workdir))
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.parametrize("given", ["", "5", "5:", ":5", "5:0", "-1:2", "a:b", "1:2:3"])
def test_mistakes(given):
    with pytest.raises(ConfigError, match=f"--profile={given}: must be START:STEPS"):
        Tracer.parse(given, epath.Path("run"))
