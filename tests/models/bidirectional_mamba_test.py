"""Real weights: a trained bidirectional Mamba against the NumPy code that it comes with."""

import functools
import importlib.util
import json
import zipfile
import zipimport

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linear_transformer.data.errors import FetchError
from linear_transformer.data.io.fetch import fetch_package
from linear_transformer.models import bidirectional_mamba
from tests.layers import slow_except

WHEEL = "typeseg-0.2.7-py3-none-any.whl"
SHA256 = "b84357f687b879d951c7aa1e102ea0ca7d942ffc0177fd32de101981cc318442"
TEXT = b"""<div class="menu"><a href="/">Start</a></div>
.menu a { color: #234; margin: 0 auto; }
function go(n) { return [...Array(n).keys()].map((i) => i * i); }
SELECT name, count(*) FROM visits GROUP BY name ORDER BY 2 DESC;
Gr\xc3\xbc\xc3\x9fe aus M\xc3\xbcnchen, and a line of plain English prose for the classifier.
"""


@pytest.fixture(scope="module")
def wheel():
    try:
        return fetch_package("typeseg==0.2.7", WHEEL, SHA256)
    except FetchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def parameters(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return bidirectional_mamba.load(archive.read("typeseg/data/mamba_al.npz"))


@pytest.fixture(scope="module")
def expected(wheel, parameters):
    """Logits of the package's own token-by-token loop, one module of it read from the wheel."""
    spec = zipimport.zipimporter(f"{wheel}/typeseg").find_spec("_mamba_kernel")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    weights = {name: np.asarray(array) for name, array in parameters.items()}
    return reference.mamba_forward(np, weights, np.frombuffer(TEXT, np.uint8))


def logits(parameters, **options):
    bytes_BT = jnp.asarray(np.frombuffer(TEXT, np.uint8), jnp.int32)[None]
    apply = functools.partial(bidirectional_mamba.content_logits, **options)
    return np.asarray(jax.jit(apply)(parameters, bytes_BT)[0])


@pytest.mark.parametrize("form", slow_except(("chunk",), ("recurrent", "chunk", "associative")))
def test_equals_its_own_reference(parameters, expected, form):
    """fp32 through 6 layers: the package's own two scans differ by 6e-6, logits go from -6 to 8."""
    actual = logits(parameters, form=form)
    assert np.max(np.abs(actual - expected)) < 1e-4
    assert np.std(expected) > 1


def test_labels_what_it_reads(wheel, parameters):
    with zipfile.ZipFile(wheel) as archive:
        labels = json.loads(archive.read("typeseg/data/manifest.json"))["labels"]
    found = [labels[i] for i in np.argmax(logits(parameters), axis=-1)]
    lines = TEXT.splitlines(keepends=True)[:4]
    ends = np.cumsum([len(line) for line in lines])
    halves = [found[end - len(line) // 2] for line, end in zip(lines, ends, strict=True)]
    assert halves == ["html", "css", "javascript_typescript", "sql"]
