"""The folder of compiled programs: where it is, whose it is, and what is thrown away."""

import os
import warnings

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from linear_transformer.errors import ConfigError
from linear_transformer.runtime import compile_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def enable(tmp_path, monkeypatch):
    """`enable(flag)` in a process without a cache, whose user has only the folder tmp_path."""
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def call(flag=None):
        with flagsaver.flagsaver(compile_cache=flag):
            return compile_cache.enable()

    with warnings.catch_warnings():
        yield call
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_something(factor):
    jax.clear_caches()
    assert jax.jit(lambda x: factor * x)(jnp.float32(2)) == 2 * factor


def entries(folder):
    return sorted(folder.glob("*-cache"))


def test_programs_are_kept_in_a_folder_of_the_user(enable, tmp_path):
    folder = tmp_path / "cache" / "compiled"
    assert enable() == f"kept in {folder}"
    assert folder.stat().st_mode & 0o777 == 0o700
    compile_something(3.0)
    kept = entries(folder)
    assert kept
    compile_something(3.0)
    assert entries(folder) == kept


def test_half_an_entry_is_removed(enable, tmp_path):
    """Also one from before the last look, as a process may have been killed since."""
    folder = tmp_path / "cache" / "compiled"
    enable()
    compile_something(5.0)
    jax.config.update("jax_compilation_cache_dir", None)  # another process starts
    enable()
    (whole, *_) = kept = entries(folder)
    whole.write_bytes(whole.read_bytes()[:-10])
    jax.config.update("jax_compilation_cache_dir", None)
    enable()
    assert entries(folder) == kept[1:]


def test_the_oldest_go_first(enable, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    enable(str(folder))
    for name, time in (("a", 3), ("b", 1), ("c", 2)):
        path = folder / f"{name}-cache"
        path.write_bytes(b"12345")
        os.utime(path, (time, time))
    (folder / "checked").touch()
    monkeypatch.setattr(compile_cache, "_MAX_BYTES", 10)
    enable(str(folder))
    assert [path.name for path in entries(folder)] == ["a-cache", "c-cache"]


def test_off(enable, tmp_path):
    assert enable("off") == "not kept"
    compile_something(7.0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("problem", ["other users can write there", "not a folder", "owner"])
def test_a_folder_of_others_is_not_used(problem, enable, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "compiled"
    folder.parent.mkdir()
    if problem == "not a folder":
        folder.touch()
    else:
        folder.mkdir()
    if problem == "owner":
        problem = "belongs to another user"
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    elif folder.is_dir():
        folder.chmod(0o777)
    assert enable() == f"not kept; {folder}: {problem}"
    assert jax.config.jax_compilation_cache_dir is None
    with pytest.raises(ConfigError, match=rf"--compile_cache={folder}: {problem}"):
        enable(str(folder))


def test_the_users_own_choice_stays(enable, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert enable() == f"kept in {tmp_path}/own"
