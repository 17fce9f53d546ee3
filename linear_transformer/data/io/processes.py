"""Parallel map over processes, with ordered results."""

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
    """Yields the result of `function` for each argument, in order.

    Args:
      function: function to call; it must be picklable, and so must its arguments and results.
      arguments: arguments, possibly endless; a few more are taken than results are yielded.
      processes: number of parallel processes; 1 calls `function` in this process.

    Raises:
      DataError: `processes` is less than 1. Errors of `function` are raised too.
    """
    if processes < 1:
        raise DataError(f"--processes={processes}: must be at least 1")
    if processes == 1:
        yield from map(function, arguments)
        return
    # "fork" is unsafe, because loaded libraries may have threads.
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
