"""Reading what faulthandler writes."""

import faulthandler
import os
import threading
from pathlib import Path

from samestep.diagnose.stacks import Frame, place_in, threads_of, waits_for_loader, waits_for_lock

TEXT = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/home/me/feeder.py", line 5 in run

Current thread 0x00007f0000000002 [python] (most recent call first):
  File "/usr/lib/python3.11/selectors.py", line 415 in select
  File "/venv/torch/utils/data/dataloader.py", line 1295 in _try_get_data
  File "/ours/executor.py", line 97 in load
  File "<string>", line 1 in <module>
"""
LIBRARIES = ("/usr/lib/python3.11", "/venv")


def test_the_thread_that_got_the_signal_comes_first() -> None:
    main, other = threads_of(TEXT)
    assert main[0] == Frame("/usr/lib/python3.11/selectors.py", 415, "select")
    assert str(other[1]) == "feeder.py:5 run"
    assert threads_of("") == []
    assert threads_of("torn off\n  File") == []


def test_the_line_to_show_is_the_innermost_of_no_library() -> None:
    main, other = threads_of(TEXT)
    assert place_in(other, LIBRARIES) == Frame("/home/me/feeder.py", 5, "run")
    assert place_in(main, (*LIBRARIES, "/ours")) is None


def test_a_loader_is_waited_for_unless_the_data_set_is_called_by_the_worker_itself() -> None:
    main, other = threads_of(TEXT)
    assert waits_for_loader(main, LIBRARIES, "/ours")
    assert not waits_for_loader([Frame("/home/me/data.py", 1, "__getitem__"), *main], LIBRARIES, "/ours")
    assert not waits_for_loader(other, LIBRARIES, "/ours")


def test_a_lock_is_known_by_the_innermost_frame() -> None:
    main, other = threads_of(TEXT)
    assert waits_for_lock(other)
    assert not waits_for_lock(main)
    assert not waits_for_lock([])


def test_what_faulthandler_writes_today_is_understood(tmp_path: Path) -> None:
    there, go = threading.Event(), threading.Event()

    def lingers() -> None:
        there.set()
        go.wait()

    thread = threading.Thread(target=lingers)
    thread.start()
    there.wait()
    with (tmp_path / "stacks").open("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0, os.SEEK_SET)
        found = threads_of(file.read())
    go.set()
    thread.join()
    assert found[0][0].function == "test_what_faulthandler_writes_today_is_understood"
    assert any(frame.function == "lingers" for frames in found[1:] for frame in frames)
