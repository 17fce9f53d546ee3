"""Parallel map over processes, with results in order."""

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from linear_transformer.data.errors import DataError


def ordered_map(
    function: Callable[[Any], Any], arguments: Iterable[Any], processes: int
) -> Iterator[Any]:
    """Yields `function` of each argument, in order; one process means the calling one.

    Args:
      function: can be pickled, like its arguments and results.
      arguments: may be endless; a few more are taken than results are yielded.
      processes: number of processes that work at a time.

    Raises:
      DataError: `processes` is less than 1. Errors of `function` are raised too.
    """
    if processes < 1:
        raise DataError(f"--processes={processes}: must be at least 1")
    if processes == 1:
        yield from map(function, arguments)
        return
    # Not forked: libraries that are loaded may have threads.
    context = multiprocessing.get_context("spawn")
    arguments = iter(arguments)
    executor = concurrent.futures.ProcessPoolExecutor(processes, context)
    try:
        pending = collections.deque()
        while True:
            for argument in itertools.islice(arguments, 2 * processes - len(pending)):
                pending.append(executor.submit(function, argument))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
