"""Limits and kills for memory of control groups of every kind."""

import sys
from pathlib import Path

import pytest

from samestep.system.control_groups import ControlGroup, OutOfMemory, control_group


def group(root: Path, **files: str) -> ControlGroup:
    """What is read below a root that has these files; `__` stands for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return control_group(root)


V2 = {"sys__fs__cgroup__cgroup_DOT_controllers": "cpu memory", "proc__self__cgroup": "0::/a/b"}
V1 = {"proc__self__cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x"}


def test_version_2_takes_the_least_limit_on_the_way_up(tmp_path: Path) -> None:
    found = group(
        tmp_path,
        **V2,
        sys__fs__cgroup__a__b__cpu_DOT_max="max 100000",
        sys__fs__cgroup__a__cpu_DOT_max="150000 100000",
        sys__fs__cgroup__a__b__memory_DOT_max="2000",
        sys__fs__cgroup__a__memory_DOT_max="max",
        sys__fs__cgroup__memory_DOT_max="3000",
    )
    assert found == ControlGroup(2, 1.5, 2000)


def test_version_2_with_no_limits_and_with_files_that_say_nonsense(tmp_path: Path) -> None:
    assert group(tmp_path / "a", **V2) == ControlGroup(2)
    nonsense = {"sys__fs__cgroup__cpu_DOT_max": "fast", "sys__fs__cgroup__memory_DOT_max": ""}
    assert group(tmp_path / "b", **V2, **nonsense) == ControlGroup(2)


def test_version_1_in_a_container_whose_path_is_not_there(tmp_path: Path) -> None:
    found = group(
        tmp_path,
        **V1,
        sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us="50000",
        sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us="100000",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes="4096",
    )
    assert found == ControlGroup(1, 0.5, 4096)


def test_version_1_writes_no_limit_as_a_large_number_and_as_minus_one(tmp_path: Path) -> None:
    found = group(
        tmp_path,
        **V1,
        sys__fs__cgroup__cpu__docker__x__cpu_DOT_cfs_quota_us="-1",
        sys__fs__cgroup__cpu__docker__x__cpu_DOT_cfs_period_us="100000",
        sys__fs__cgroup__memory__docker__x__memory_DOT_limit_in_bytes="9223372036854771712",
    )
    assert found == ControlGroup(1)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("4:memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/b/memory.oom_control"),
        ("4:memory:/not/seen\n0::/\n", "sys/fs/cgroup/memory/memory.oom_control"),
        ("0::/user.slice/x\n", "sys/fs/cgroup/user.slice/x/memory.events"),
    ],
)
def test_a_kill_for_memory_is_counted_by_the_group(tmp_path: Path, groups: str, file: str) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(groups)
    counter = tmp_path / file
    counter.parent.mkdir(parents=True)
    counter.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    found = OutOfMemory(7, tmp_path)
    assert not found.has_killed()
    counter.write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert found.has_killed()


def test_where_nothing_is_counted_nobody_was_killed(tmp_path: Path) -> None:
    assert not OutOfMemory(7, tmp_path).has_killed()
    assert sys.platform == "linux"
