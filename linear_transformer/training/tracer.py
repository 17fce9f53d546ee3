"""Profiles of some training steps, for XProf (`xprof --logdir=DIR/profile`)."""

import tempfile
from typing import Any

import jax
from etils import epath

from linear_transformer.data.io.reading import files_below
from linear_transformer.errors import ConfigError


class Tracer:
    """Recorder of a profile of some steps, in the folder `profile/` of a run."""

    def __init__(self, workdir: epath.Path, first: int, steps: int):
        """Makes a tracer of `steps` steps, which starts after the first `first` steps."""
        self._folder = workdir / "profile"
        self._first = first
        self._steps = steps
        self._local: tempfile.TemporaryDirectory | None = None  # the profiler can't write to gs://

    @classmethod
    def parse(cls, text: str, workdir: epath.Path) -> "Tracer":
        """Makes a tracer from the value "START:STEPS" of --profile.

        Raises:
          ConfigError: the text has another format.
        """
        first, _, steps = text.partition(":")
        if not (first.isdecimal() and steps.isdecimal() and int(steps)):
            raise ConfigError(f"--profile={text}: must be START:STEPS, such as 20:5")
        return cls(workdir, int(first), int(steps))

    def at(self, step: int, state: Any) -> None:
        """Starts or stops the trace if this step is its start or end; call it between steps."""
        if self._local is None and step == self._first:
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name)
        elif self._local is not None and step == self._first + self._steps:
            jax.block_until_ready(state)  # JAX dispatches steps before the device has run them
            self.stop()

    def stop(self) -> None:
        """Ends and writes an active trace; at the end of a run it may have fewer steps."""
        if self._local is None:
            return
        folder, self._local = self._local, None
        jax.profiler.stop_trace()
        local = epath.Path(folder.name)
        for path in files_below(local):
            copy = self._folder / path.relative_to(local)
            copy.parent.mkdir(parents=True, exist_ok=True)
            path.copy(copy, overwrite=True)
        folder.cleanup()
        print(f"{'profile:':12} {self._folder}", flush=True)
