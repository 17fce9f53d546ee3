"""Lock that allows one training at a time in a folder."""

import fcntl
import os
from typing import IO

from etils import epath

from linear_transformer.errors import ConfigError, RunError


class FolderLock:
    """Lock on a run folder, held from `acquire` to `release` or to the end of the process.

    The operating system keeps the lock, so a killed run leaves no lock that would block the next
    run.  Buckets (gs://) have no locks and are not protected.
    """

    def __init__(self, workdir: epath.Path):
        self._workdir = workdir
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock; creates the folder if it does not exist.

        Raises:
          ConfigError: another process trains there, or the folder can't be written.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if "://" in str(self._workdir):
                return
            self._file = open(self._workdir / "lock", "w")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(
                f"--workdir={self._workdir}: cannot be written ({error.strerror})"
            ) from error
        except ImportError as error:
            raise ConfigError(
                f"--workdir={self._workdir}: needs `pip install -r requirements-tpu.txt` ({error})"
            ) from error
        try:
            # lockf belongs to the process, not to the file: a surviving child does not hold it.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise ConfigError(
                f"--workdir={self._workdir}: another training is running there"
            ) from error

    def check(self) -> None:
        """Raises a RunError if the folder was removed, moved or replaced since `acquire`."""
        if self._file is None:
            return
        try:
            found = os.stat(self._workdir / "lock")
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, os.fstat(self._file.fileno())):
            raise RunError(f"--workdir={self._workdir}: the folder was removed or moved away")

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
