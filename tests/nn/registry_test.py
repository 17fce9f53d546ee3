"""What the table says of a mechanism is what its mixer does."""

import pytest
from flax import nnx

from linear_transformer.nn.mixers.registry import MIXERS, mixer_options
from linear_transformer.nn.rngs import ParameterRngs

D, H, LENGTH = 8, 2, 16


def made(mechanism, **options):
    """The mixer by shapes alone; None where it does not take these options."""
    if mechanism.length_option is not None:
        options = {mechanism.length_option: LENGTH} | options
    try:
        return nnx.eval_shape(lambda: mechanism(D, H, rngs=ParameterRngs(0), **options))
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize("name", MIXERS)
def test_the_mixer_agrees(name):
    mechanism = MIXERS[name]
    causal = made(mechanism)
    both = made(mechanism, direction="bidirectional", **(mechanism.bidirectional or {}))
    assert (causal is not None) == mechanism.causal
    assert (both is not None) == (mechanism.bidirectional is not None)
    one_way = {} if mechanism.causal else {"direction": "bidirectional"}
    assert (made(mechanism, depth=0.5, **one_way) is not None) == mechanism.uses_depth
    assert (made(mechanism, rotary=True, **one_way) is not None) == mechanism.rotary
    assert mechanism.limits_length == ((causal or both).capacity == LENGTH)


@pytest.mark.parametrize("name", MIXERS)
def test_the_mixer_takes_the_options(name):
    mechanism = MIXERS[name]
    known = mixer_options(name)
    named = {*mechanism.options, *mechanism.defaults, *mechanism.causal_only}
    named |= {mechanism.length_option} - {None}
    named |= {mechanism.encodes_order} - {True, False}
    assert named <= known.keys()
    for option, default in mechanism.defaults.items():
        assert known[option].default == default
    options = {k: v for k, v in mechanism.options.items() if v is not None}
    mixer = made(mechanism, **mechanism.bidirectional_options(options))
    assert getattr(mixer, "direction", "causal") == (
        "causal" if mechanism.bidirectional is None else "bidirectional"
    )


def test_options_override_the_defaults_of_a_name():
    assert made(MIXERS["norm"]).feature_map == "elu"
    assert made(MIXERS["norm"], feature_map="exp").feature_map == "exp"


@pytest.mark.parametrize("text", ["meaning", "source"])
def test_a_line_of_text(text):
    """One line that fits beside a name."""
    for mechanism in MIXERS.values():
        line = getattr(mechanism, text)
        assert line and "\n" not in line and len(line) <= 100 and not line.endswith("."), line
