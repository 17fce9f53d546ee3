"""SIGINT, SIGTERM and SIGHUP: at whatever moment one comes, nothing that was computed is lost."""

import ctypes
import errno
import io
import os
import signal
import sys
import threading
import time

import pytest

from linear_transformer.tasks.language_modelling import LanguageModelling
from linear_transformer.training import build, loop, stop
from tests.layers import slow_except
from tests.training import runs
from tests.training.resume_test import assert_same_run


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture
def ended(monkeypatch):
    """(status, line) of each time that the watching thread would have ended this process."""
    calls = []
    monkeypatch.setattr(stop.Stop, "_end", lambda self, *call: calls.append(call))
    return calls


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Those of a program in a terminal; tests may run where signals are ignored."""
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(*pair) for pair in zip(stop.SIGNALS, usual, strict=True)]
    yield
    for pair in zip(stop.SIGNALS, before, strict=True):
        signal.signal(*pair)


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", slow_except(("SIGINT", "SIGHUP"), ("SIGINT", "SIGTERM", "SIGHUP")))
def test_between_steps(name, unbroken, tmp_path, monkeypatch, capsys):
    """The step is saved, the handlers are those of before, and the run goes on as if unbroken.

    The resume is the same after each of them.
    """
    config, workdir, state = unbroken
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    collect = loop._Loop._collect

    def collect_and_send(self, step, metrics):
        collect(self, step, metrics)
        if step == 5:
            send(getattr(signal, name))

    monkeypatch.setattr(loop._Loop, "_collect", collect_and_send)
    runs.run(config, tmp_path / "run")
    monkeypatch.undo()
    saved = runs.steps(tmp_path / "run")[-1]
    assert 5 <= saved <= 6
    assert f"{name}: saved step {saved}; the same command goes on" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
    if name == "SIGHUP":
        assert_same_run(tmp_path / "run", runs.run(config, tmp_path / "run"), workdir, state)


class ClosedPipe(io.StringIO):
    """Output whose reader ends before the line of step 3."""

    def write(self, text):
        if self.closed or text.startswith("step      3"):
            self.close()
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_output_that_nobody_reads(text, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        runs.run(runs.make_config(text, log_every=1), tmp_path / "run")
    assert runs.steps(tmp_path / "run")[-1] == 3


def test_while_data_are_loaded(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "make_task", lambda config: send() or time.sleep(60))
    with pytest.raises(SystemExit) as end:
        runs.run(runs.make_config(text), tmp_path / "run")
    assert end.value.code == 0
    assert "SIGTERM: nothing was unsaved" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_while_a_batch_does_not_come(unbroken, tmp_path, monkeypatch, capsys):
    """Where the data stood is not known then; a resume counts."""
    config, workdir, state = unbroken
    monkeypatch.setattr(stop, "_DATA_SECONDS", 0.2)
    read, reads = loop._Loop._next_batch, []

    class Stuck:
        def __next__(self):
            send()
            threading.Event().wait(60)

    def read_five(self):
        reads.append(self.step)
        if self.step == 5:
            self.data = Stuck()
        return read(self)

    monkeypatch.setattr(loop._Loop, "_next_batch", read_five)
    runs.run(config, tmp_path / "run")
    monkeypatch.undo()
    assert reads[-1] == 5
    assert "SIGTERM: saved step 5" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", runs.run(config, tmp_path / "run"), workdir, state)


def test_in_an_evaluation(unbroken, tmp_path, monkeypatch):
    """Its step was saved before; a resume makes up for the evaluation."""
    _, workdir, state = unbroken
    config = runs.make_config(unbroken[0].data.path, checkpoint_every=100)
    evaluate = LanguageModelling.evaluate
    monkeypatch.setattr(LanguageModelling, "evaluate", lambda *_: send() or time.sleep(60))
    with pytest.raises(SystemExit) as end:
        runs.run(config, tmp_path / "run")
    assert end.value.code == 0
    assert runs.steps(tmp_path / "run") == [4]
    monkeypatch.setattr(LanguageModelling, "evaluate", evaluate)
    assert_same_run(tmp_path / "run", runs.run(config, tmp_path / "run"), workdir, state)
    validation = [runs.curve(folder, "validation") for folder in (tmp_path / "run", workdir)]
    assert validation[0] == validation[1]


def test_short_evaluations_wait_for_their_checkpoint(text, tmp_path):
    """Only the first one, which compiles, and long ones begin with a checkpoint."""
    config = runs.make_config(text, eval_every=2, checkpoint_every=100, keep_checkpoints=10)
    runs.run(config, tmp_path / "run")
    assert runs.steps(tmp_path / "run") == [2, 12]


def test_in_code_that_hears_no_signals(ended, monkeypatch):
    """As in the compiler: the thread ends the process, but not while anything is unsaved."""
    monkeypatch.setattr(stop, "_UNWIND_SECONDS", 0.1)
    with stop.Stop() as handling:
        handling.unsaved()
        signal.pthread_sigmask(signal.SIG_BLOCK, stop.SIGNALS)  # the thread has them still
        try:
            send()
            ctypes.CDLL(None).usleep(400_000)
            assert handling.received == "SIGTERM"
            assert not ended
            handling._unsaved = False
            ctypes.CDLL(None).usleep(400_000)
            assert ended[0] == (0, stop.NOTHING_UNSAVED)
        finally:
            handling.saving()  # the signal that waits changes nothing
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.SIGNALS)


def test_a_second_interrupt_ends_at_once(ended):
    """Other signals may come in pairs: a session that ends sends SIGTERM and SIGHUP."""
    with stop.Stop() as handling:
        handling.unsaved()
        send(signal.SIGINT)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        time.sleep(0.3)
        assert not ended
        send(signal.SIGINT)
        wait_until(lambda: ended)
        assert ended[0][0] == 1
        assert handling.received == "SIGINT"


def test_ignored_signals_stay_ignored():
    """`nohup` trains on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.Stop() as handling:
            send(signal.SIGHUP)
            assert handling.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
