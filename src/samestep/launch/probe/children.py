"""Forked children that each return one JSON value, through memory without a name."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from samestep.launch.failure import failure_event
from samestep.system.processes import fork


def in_child(work: Callable[[], Any]) -> Any:
    """Result of `work`, computed in a child, so that this process stays as it is; see `fork_all`."""
    return fork_all([work])()[0]


def fork_all(works: Sequence[Callable[[], Any]]) -> Callable[[], list[Any]]:
    """Fork a child for each of `works`. The function that is returned waits for all of them and returns their values.

    A child that raises returns the failure as an event; one that ends without a value returns None.
    """
    files = [os.memfd_create("samestep-child") for _ in works]
    pids = [fork(partial(_write_value, work, file)) for work, file in zip(works, files, strict=True)]

    def wait() -> list[Any]:
        for pid in pids:
            os.waitpid(pid, 0)
        return [_read_value(file) for file in files]

    return wait


def _write_value(work: Callable[[], Any], file: int) -> int:
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 - raised again by whoever reads the value
        value = failure_event(error, None, None)
    with os.fdopen(os.dup(file), "w") as text:
        json.dump(value, text)
    return 0


def _read_value(file: int) -> Any:
    with os.fdopen(file) as text:
        text.seek(0)
        content = text.read()
    return json.loads(content) if content else None
