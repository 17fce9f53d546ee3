"""Persistent cache of compiled programs, with which a second start compiles nothing.

JAX keys a program by its HLO, the compiler's version and flags, and the devices. Programs from the
folder are executed, so the folder must not be writable for other users.
"""

import contextlib
import os
import pathlib
import stat
import warnings

import jax
from absl import flags

from linear_transformer.errors import ConfigError
from linear_transformer.runtime.user_cache import cache_dir

_OFF = "off"
_FOLDER = flags.DEFINE_string(
    "compile_cache",
    None,
    "Folder of compiled programs, or off; by default compiled/ in the cache folder of the user.",
)
_MAX_BYTES = 4 << 30
_SUFFIX = "-cache"  # of JAX's entries
_CHECKED = "checked"  # its modification time is the time of the last check for damaged entries
_CLOCK_SECONDS = 1.0  # resolution of file times


def enable() -> str:
    """Turns the cache on as --compile_cache says; call it before anything is compiled.

    A folder that JAX_COMPILATION_CACHE_DIR names is left as it is.

    Returns:
      The text about the cache for the log.

    Raises:
      ConfigError: --compile_cache names a folder that can't be used.
    """
    if _FOLDER.value == _OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return "not kept"
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if _FOLDER.value is None and chosen:
        return f"kept in {chosen}"
    folder = None
    try:
        folder = pathlib.Path(_FOLDER.value) if _FOLDER.value else cache_dir() / "compiled"
        folder = folder.expanduser().absolute()
        _open(folder)
        _clean(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = getattr(error, "strerror", None) or str(error)
        if _FOLDER.value:
            raise ConfigError(f"--compile_cache={_FOLDER.value}: {reason}") from error
        return f"not kept; {folder or 'no folder'}: {reason}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A full disk costs a compilation at the next start, not this run.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return f"kept in {folder}"


def _open(folder: pathlib.Path) -> None:
    """Makes the folder for the user alone, or raises an OSError with the reason."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError("not a folder")
    if status.st_uid != os.getuid():
        raise OSError("belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError("other users can write there")


def _clean(folder: pathlib.Path) -> None:
    """Removes entries that a killed process left half written, and the oldest above a total size.

    JAX writes entries in place and never rewrites an existing entry.
    """
    marker = folder / _CHECKED
    checked = marker.stat().st_mtime if marker.exists() else 0.0
    marker.touch()  # before the check, so that the next one includes entries written meanwhile
    size = 0
    entries = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove entries too
            entries.append((path, path.stat()))
    for path, status in sorted(entries, key=lambda entry: -entry[1].st_atime):
        size += status.st_size
        is_new = status.st_mtime > checked - _CLOCK_SECONDS
        if size > _MAX_BYTES or (is_new and not _is_whole(path)):
            path.unlink(missing_ok=True)


def _is_whole(path: pathlib.Path) -> bool:
    from jax._src.compilation_cache import decompress_executable  # JAX has no public reader

    try:
        decompress_executable(path.read_bytes())
    except Exception:  # zlib and zstd may raise any exception
        return False
    return True
