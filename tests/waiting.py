"""Waiting for a condition. A test never sleeps in the hope that something will have happened by then."""

import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true value of ``condition``. The deadline is for a busy machine: nothing takes that long otherwise.

    Raises:
        AssertionError: it is still false after ``seconds``; names ``what`` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
    return value
