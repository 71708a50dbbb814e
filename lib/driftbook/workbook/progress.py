"""Progress where the person is: a bar in JupyterLab, a line with rate and time left in a headless log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TextIO

SECONDS_BETWEEN_LINES = 5.0


def duration(seconds: float) -> str:
    """``59 s``, ``4 min 10 s``, ``3 h 20 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Progress:
    """A counter that writes at most one line every five seconds; the first after five seconds, and one at the end.

    Iterate over it when it was made from an iterable, or call ``update(n)`` as units get done. It ends by itself when
    the total is reached; ``close`` ends one whose total is not known.
    """

    def __init__(
        self,
        source: int | Iterable[Any] | None,
        label: str,
        unit: str = "items",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self.items = None if source is None or isinstance(source, int) else source
        self.total = source if isinstance(source, int) else (len(source) if hasattr(source, "__len__") else None)
        self.label, self.unit = label, unit
        self.done = 0
        # sys.__stderr__ is the log of the run; ipykernel's sys.stderr would put every line into the notebook as well.
        self.stream = stream if stream is not None else (sys.__stderr__ or sys.stderr)
        self.clock, self.every = clock, every
        self.started = self.last = clock()
        self.closed = False

    def update(self, n: int = 1) -> None:
        self.done += n
        if self.total is not None and self.done >= self.total:
            self.close()
        elif self.clock() - self.last >= self.every:
            self._line()

    def close(self) -> None:
        if not self.closed:
            self._line()
            self.closed = True

    def _line(self) -> None:
        now = self.clock()
        self.last = now
        seconds = max(now - self.started, 1e-9)
        rate = self.done / seconds
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.label}: {count} {self.unit}", f"{rate:,.1f} {self.unit}/s"]
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(f"after {duration(seconds)}")
        print(", ".join(parts), file=self.stream, flush=True)

    def __iter__(self) -> Iterator[Any]:
        if self.items is None:
            raise TypeError("this progress counts with update(n); it was not made from an iterable")
        for item in self.items:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bar:
    """The same handle as ``Progress``, drawn as a bar (tqdm: a widget in JupyterLab)."""

    def __init__(self, source: int | Iterable[Any] | None, label: str, unit: str = "items") -> None:
        from tqdm.auto import tqdm  # a fifth of a second, in JupyterLab alone

        counted = source is None or isinstance(source, int)
        self.bar = tqdm(
            None if counted else source, total=source if isinstance(source, int) else None, desc=label, unit=f" {unit}"
        )

    def update(self, n: int = 1) -> None:
        self.bar.update(n)

    def close(self) -> None:
        self.bar.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bar)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
