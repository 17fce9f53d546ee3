"""Operations beside published code of others: fixtures of inputs, outputs and gradients.

README.md of this folder says how the fixtures were made; `sources.json` names the published code.
"""

import functools
import json

import jax
import pytest

from tests.ops import contract
from tests.references import layers, operations, softmax_layers  # noqa: F401 - they fill CASES
from tests.references.cases import CASES, CHUNK, FOLDER, fixture


def options_of(form):
    if form == "blockwise":
        return {"form": form, "block_size": CHUNK}
    if form in ("", "softmax parallel"):
        return {"form": "parallel"} if form else {}
    return {"form": form, "chunk_size": CHUNK}


def errors(name):
    """Relative RMS error of each output in each form, and of each gradient in the first form."""
    arrays, outputs, cotangents, gradients = fixture(name)
    function, (first, *others), _ = CASES[name]
    inputs = {n: arrays[n] for n in arrays if f"d_{n}" in gradients}

    def run(inputs, arrays, cotangents):
        def of(form, inputs):
            return function(options_of(form), **arrays | inputs)

        found, pullback = jax.vjp(functools.partial(of, first), inputs)
        return {first: found} | {form: of(form, inputs) for form in others}, pullback(cotangents)[0]

    options = {"xla_backend_optimization_level": 0}
    with jax.enable_x64(True):
        found, found_gradients = jax.jit(run, compiler_options=options)(inputs, arrays, cotangents)
    rows = {f"{n} {form}": (o[n], outputs[n]) for form, o in found.items() for n in outputs}
    rows |= {f"d_{n} {first}": (found_gradients[n], gradients[f"d_{n}"]) for n in inputs}
    return {n: contract.relative_rms(*row) for n, row in rows.items()}


def test_every_fixture_has_a_case_and_a_source():
    fixtures = {path.stem for path in (FOLDER / "fixtures").iterdir()}
    sources = json.loads((FOLDER / "sources.json").read_text())["fixtures"]
    assert fixtures == CASES.keys() == sources.keys()
    for source in sources.values():
        assert len(source["commit"]) == 40 and {"repository", "file", "function"} < source.keys()


@pytest.mark.parametrize("name", CASES)
def test_published_code_has_the_same_outputs_and_gradients(name):
    found = errors(name)
    wrong = {n: x for n, x in found.items() if not x <= CASES[name].tolerance}
    assert not wrong
