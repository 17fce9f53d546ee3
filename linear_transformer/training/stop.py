"""Handling of SIGINT, SIGTERM and SIGHUP: the run stops, and no computed step is lost.

Python runs signal handlers only after C++ code returns, and a compilation takes minutes.  So a
thread watches for signals too: while nothing is unsaved (data are loaded, a program is compiled, a
long evaluation runs), the thread ends the process.  Otherwise the loop calls `requested` between
two steps and saves.
"""

import os
import select
import signal
import sys
import threading
import time
from types import FrameType

from linear_transformer.runtime import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_POLL_SECONDS = 0.1
_UNWIND_SECONDS = 1.0  # time for the main thread to end by itself while nothing is unsaved
_TOGETHER_SECONDS = 15.0  # the same time if there are other processes
_DATA_SECONDS = 10.0  # longest wait for a batch after a signal
_OTHERS_SECONDS = 60.0  # longest wait for a step that needs processes which may have ended
_ASK_SECONDS = 2.0  # time between two exchanges with the other processes


NOTHING_UNSAVED = "nothing was unsaved; the same command goes on from the last checkpoint"


class Interrupted(SystemExit):
    """Exit of the program with status 0: a signal came while nothing was unsaved."""


class Stop:
    """Context manager that handles the signals, in the main thread of the process.

    A signal that is ignored (`nohup`) stays ignored.  A second Ctrl-C ends the process at once,
    with status 1.

    Attributes:
      received: name of the first signal, or that of an error of the output; None before.
    """

    def __init__(self):
        self.received: str | None = None
        self._at = 0.0  # time of the signal, or of the last call of `nothing_unsaved`
        self._unsaved = False
        self._saving = False
        self._unprinted: OSError | None = None
        self._reading_since: float | None = None
        self._previous = {}
        self._calls = self._next_question = 0
        self._asked_at, self._asked_calls = time.monotonic(), 0

    def __enter__(self) -> "Stop":
        self._main = threading.current_thread()
        if self._main is not threading.main_thread():  # Python allows handlers only there
            return self
        self._pipe, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._main is not threading.main_thread():
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._wakeup)  # ends the thread
        self._thread.join()
        os.close(self._pipe)

    def requested(self) -> bool:
        """Returns whether to save and stop now; call it between steps, in every process.

        Several processes exchange their signals about every two seconds, and all of them get the
        same answer after the same step.
        """
        if not distributed.has_others():
            return self.received is not None
        self._calls += 1
        if self._calls < self._next_question:
            return False
        now = time.monotonic()
        answers = distributed.gather([self.received, now - self._asked_at])
        per_call = answers[0][1] / max(self._calls - self._asked_calls, 1)
        wait = max(1, min(int(_ASK_SECONDS / max(per_call, 1e-6)), 1000))
        self._asked_at, self._asked_calls = now, self._calls
        self._next_question = self._calls + wait
        name = next((name for name, _ in answers if name), None)
        self.received = self.received or name
        return name is not None

    def say(self, line: str) -> None:
        """Prints a line; if that fails while steps are unsaved, the run is to stop and save."""
        if self._unprinted is not None:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            if not self._unsaved:
                raise
            self._unprinted = error
            self.received = self.received or type(error).__name__

    def report(self, what: str) -> None:
        """Prints why the run stops; raises the error of `say` if there was one."""
        if self._unprinted is not None:
            raise self._unprinted
        print(f"{self.received}: {what}", flush=True)

    def nothing_unsaved(self) -> None:
        """Allows a signal to end the process at any moment from now on.

        Raises:
          Interrupted: a signal came; this exception may also be raised later.
        """
        self._unsaved = self._saving = False
        self._at = time.monotonic()
        self._interrupt_if_due()

    def unsaved(self) -> None:
        """Declares that steps must be saved before the process ends."""
        self._unsaved, self._saving = True, False

    def saving(self) -> None:
        """Prevents signals from ending the process until `unsaved` or `nothing_unsaved`."""
        self._saving = True

    def reading(self, active: bool) -> None:
        """Sets whether the loop waits for data; after a signal, a long wait raises Interrupted."""
        self._reading_since = time.monotonic() if active else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._receive(number)
        self._interrupt_if_due()

    def _receive(self, number: int) -> None:
        if self.received is None:
            self._at = time.monotonic()
            self.received = signal.Signals(number).name

    def _interrupt_if_due(self) -> None:
        if self._is_due():
            self._reading_since = None
            self._saving = True  # prevents a second exception
            raise Interrupted(0)

    def _is_due(self) -> bool:
        """Returns whether to interrupt the main thread; False if other processes wait for it."""
        if self.received is None or self._saving or distributed.has_others():
            return False
        now = time.monotonic()
        since = self._reading_since
        return not self._unsaved or (
            since is not None and now - max(since, self._at) >= _DATA_SECONDS
        )

    def _watch(self) -> None:
        """Runs in the thread: receives signals even while the main thread is in C++."""
        interrupted = False
        while True:
            timeout = None if self.received is None else _POLL_SECONDS
            if select.select([self._pipe], [], [], timeout)[0]:
                numbers = os.read(self._pipe, 64)
                if not numbers:
                    return
                for number in filter(self._previous.__contains__, numbers):
                    if interrupted and number == signal.SIGINT:
                        self._end(1, "once more: this process ends without saving")
                    interrupted = True
                    self._receive(number)
            if self.received is None or self._saving:
                continue
            main = self._main.ident
            if main is not None and self._is_due():
                # A signal to the main thread itself interrupts its system call.
                signal.pthread_kill(main, signal.SIGTERM)
            waited = time.monotonic() - self._at
            together = distributed.has_others()
            if not self._unsaved and waited > (_TOGETHER_SECONDS if together else _UNWIND_SECONDS):
                self._end(0, NOTHING_UNSAVED)
            if self._unsaved and together and waited > _OTHERS_SECONDS:
                self._end(1, "no answer from the other processes; the last steps are not saved")

    def _end(self, status: int, reason: str) -> None:
        """Ends the process without waiting for the main thread."""
        stream = sys.stderr if status else sys.stdout
        print(f"{'error: ' if status else ''}{self.received}: {reason}", file=stream, flush=True)
        os._exit(status)
