import os
import subprocess
import sys

import pytest

from samestep.launch import environment
from samestep.launch.environment import (
    PINNED,
    bare_environment,
    building,
    is_building,
    mkl_mode,
    physical_cores,
    server_environment,
)


def test_the_server_gets_the_users_environment_and_what_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "/somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    found = server_environment()
    assert found["MY_DATA"] == "/somewhere"
    assert {name: found[name] for name in PINNED} == PINNED
    assert found["OMP_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "16", "the command's own environment stays as it was"


def test_the_users_settings_of_malloc_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert server_environment()["GLIBC_TUNABLES"].split(":") == ["glibc.malloc.arena_max=2", environment.HUGE_PAGES]
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert server_environment()["GLIBC_TUNABLES"] == environment.HUGE_PAGES


def test_what_is_pinned_takes_effect() -> None:
    """In a process started so, torch has one thread, sees no GPU, and sets of strings have one order."""
    code = (
        "import torch; from pathlib import Path; print(torch.get_num_threads(), torch.cuda.is_available(),"
        " len(list(Path('/proc/self/task').iterdir())), list({'a', 'b', 'c', 'd'}))"
    )
    pinned = server_environment()
    found = subprocess.run([sys.executable, "-c", code], env=pinned, capture_output=True, text=True, check=True).stdout
    assert found.startswith("1 False 1 ")
    order = [sys.executable, "-c", "print('1 False 1', list({'a', 'b', 'c', 'd'}))"]
    assert subprocess.run(order, env=pinned, capture_output=True, text=True, check=True).stdout == found


def test_mkls_mode_is_the_one_it_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert mkl_mode() == "default"
    monkeypatch.setenv("MKL_CBWR", "AVX512,STRICT")
    assert mkl_mode() == "AVX512,STRICT"


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from samestep.launch.environment import physical_cores; print(physical_cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


def test_code_can_know_that_it_runs_only_because_workers_import_it() -> None:
    assert not is_building()
    with building():
        assert is_building()
        code = "from samestep.launch.environment import is_building; print(is_building())"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert child.stdout.strip() == "True"
    assert not is_building()
    with pytest.raises(ValueError, match="user code"), building():
        raise ValueError("user code")
    assert not is_building()


def test_torch_without_us_gets_its_defaults_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "/somewhere")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    found = bare_environment(2, warm_heap=False)
    assert (found["MY_DATA"], found["OMP_NUM_THREADS"], found["GLOO_SOCKET_IFNAME"]) == ("/somewhere", "2", "lo")
    assert {"MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "MKL_NUM_THREADS", "RANK"} & set(found) == set()


def test_torch_without_us_gets_our_heap_when_asked() -> None:
    found, ours = bare_environment(1, warm_heap=True), server_environment()
    heap = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    assert {name: found[name] for name in heap} == {name: ours[name] for name in heap}
