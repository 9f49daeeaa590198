import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from ccts_dist.train.resilience.stop_requests import IMPATIENT_EXIT, StopSignals, newest_complete
from tests.helpers.processes.launching import hear_interrupts

PATIENT = """
import select, sys, time
from ccts_dist.train.resilience.stop_requests import StopSignals
signals = StopSignals()
print("ready", flush=True)
while True:
    select.select([signals.readable], [], [])
    signals.read()
    print(signals.request, flush=True)
"""


def test_first_signal_is_the_request_and_handlers_come_back():
    before = signal.getsignal(signal.SIGUSR1)
    signals = StopSignals()
    try:
        assert signals.request == ""
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.request == "SIGUSR1"
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_pipe_reports_of_a_signal_while_the_main_thread_is_busy_elsewhere():
    signals = StopSignals()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.request = ""  # as if the handler had not come to run yet
        signals.read()
        assert signals.request == "SIGTERM"
        signals.read()  # nothing more to read, and no waiting for it
    finally:
        signals.restore()


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = StopSignals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.request == ""
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signals.restore()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def patient():
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PATIENT)], stdout=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def reported(child: subprocess.Popen[str], number: int) -> str:
    child.send_signal(number)
    assert child.stdout is not None
    return child.stdout.readline()


def test_interrupts_at_once_after_each_other_are_one_and_a_later_one_ends_the_process(patient):
    assert reported(patient, signal.SIGINT) == "SIGINT\n"
    assert reported(patient, signal.SIGINT) == "SIGINT\n"
    assert reported(patient, signal.SIGTERM) == "SIGINT\n"
    time.sleep(2.1)
    assert reported(patient, signal.SIGTERM) == "SIGINT\n"
    assert reported(patient, signal.SIGINT) == ""
    assert patient.wait() == IMPATIENT_EXIT


def test_newest_complete_checkpoint_is_none_that_is_being_written():
    assert newest_complete(["step-00000002", "step-00000010", "step-00000011.partial", "other"]) == "step-00000010"
    assert newest_complete(["step-00000011.partial"]) == ""
