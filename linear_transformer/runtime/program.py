"""Start of every command: flags, exit status, and errors in one line."""

import errno
import io
import os
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from etils import epath

from linear_transformer.errors import ConfigError, RunError, UserError
from linear_transformer.runtime import accelerators, distributed


def parse_flags(argv: list[str]) -> tuple[()]:
    """Parses the flags; any other argument is an error.  Returns no arguments for `main`.

    Raises:
      ConfigError: an unknown flag or argument, or a value that a flag does not take.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(rest) > 1:
        raise ConfigError(f"unknown argument {rest[1]!r}; flags look like --name=value")
    return ()


def run(
    main: Callable[..., None], parse: Callable[[list[str]], Sequence[Any]] = parse_flags
) -> None:
    """Parses the command line and runs `main`.

    A user's mistake is reported in one line with exit status 2, a RunError in one line with exit
    status 1, as is output that cannot be written, and Ctrl-C in one line with exit status 130.

    Args:
      main: function to call with the results of `parse`.
      parse: parses the command line, whose first entry is the program's name.
    """
    accelerators.leave_out_absent_tpu()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sample may have what the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")

    def parsed(argv: list[str]) -> Sequence[Any]:
        try:
            return parse(argv)
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            _interrupted()
        except OSError as error:
            _fail_if_output_is_lost(error)
            raise

    def guarded(arguments: Sequence[Any]) -> None:
        try:
            main(*arguments)
        except UserError as error:
            _fail(error)
        except RunError as error:
            _fail(error, status=1)
        except KeyboardInterrupt:
            _interrupted()
        except Exception as error:
            _fail_if_output_is_lost(error)
            if distributed.has_others():
                traceback.print_exc()
                _fail(RunError(distributed.FAREWELL), status=1)
            raise

    app.run(guarded, flags_parser=parsed)


def output_path(text: str) -> epath.Path:
    """Returns the path of a file to write after long work.

    Raises:
      ConfigError: its folder does not exist.
    """
    path = epath.Path(text)
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: cannot be written ({path.parent} is no folder)")
    return path


def end(status: int) -> typing.NoReturn:
    """Ends the process at once, without the end of the interpreter.

    Threads and C++ code that go on could print errors there, or crash the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _interrupted() -> typing.NoReturn:
    _fail(RunError("interrupted by SIGINT"), status=128 + signal.SIGINT)


def _fail_if_output_is_lost(error: Exception) -> None:
    """Ends the process if nobody reads the output any more, or a disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
        written = error.filename or "the output"
        _fail(RunError(f"{written} cannot be written ({error.strerror})"), status=1)


def _fail(error: Exception, status: int = 2) -> typing.NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    others = distributed.has_others()
    if others:
        distributed.wait_for_last_words()
    if others or isinstance(error, RunError):  # threads of a failed save go on
        end(status)
    sys.exit(status)
