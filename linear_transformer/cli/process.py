"""Set-up of a command's process before JAX is imported; this module does not import JAX."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from linear_transformer.runtime.host_memory import use_huge_pages


def prepare(usage: str | None) -> None:
    """Restarts the process with huge pages, sets the garbage collector, prepares --compile_only.

    Args:
      usage: text of --help for a command whose script has no docstring.
    """
    use_huge_pages()
    # Imports and traces make many objects that live on; to look at them often takes 0.5 s.
    gc.set_threshold(200_000, 20, 20)
    main = sys.modules["__main__"]
    main.__doc__ = main.__doc__ or usage
    from linear_transformer.cli import compile_only

    compile_only.prepare()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Makes Ctrl-C end the process with one line while modules are imported.

    The usual KeyboardInterrupt is lost if it comes in code that ignores exceptions, and the command
    would go on; JAX has such code in the collection of garbage.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, for example
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(2, b"error: interrupted by SIGINT\n")
    os._exit(128 + number)


def show_in_help(*modules: str) -> None:
    """Makes --help list the flags of modules."""
    from absl import flags

    for module in modules:
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
