"""What the kernel says of a process."""

import os
import signal
import subprocess
import time

from commands import wait_until
from samestep.system.procfs import GONE, catches, children, vital


def test_a_process_is_seen_to_sleep_stop_and_end() -> None:
    with subprocess.Popen(["sleep", "60"]) as one:
        wait_until("it to sleep", lambda: vital(one.pid).state == "S")
        assert vital(one.pid).asleep_in in ("hrtimer_nanosleep", "")
        one.send_signal(signal.SIGSTOP)
        wait_until("it to stop", lambda: vital(one.pid).state == "T")
        assert one.pid in children(os.getpid())
        one.kill()
        wait_until("it to end", lambda: vital(one.pid).state == "Z")
        assert one.pid not in children(os.getpid())
    assert vital(one.pid).state == GONE


def test_processor_time_grows_while_one_computes() -> None:
    before = vital(os.getpid())
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert vital(os.getpid()).seconds >= before.seconds + 0.03
    assert vital(os.getpid()).born == before.born


def test_a_signal_with_a_handler_is_told_from_one_without() -> None:
    number = signal.SIGRTMAX - 7
    assert not catches(os.getpid(), number)
    before = signal.signal(number, lambda *_: None)
    assert catches(os.getpid(), number)
    signal.signal(number, before)
    assert not catches(0, number)
