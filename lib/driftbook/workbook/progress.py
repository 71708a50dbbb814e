"""Progress where the person is: tqdm's bar in JupyterLab, its lines with rate and time left in a headless log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as Plain

SECONDS_BETWEEN_LINES = 5.0


class Lines(Plain):
    """A bar whose every state is a line of its own: a log keeps what a terminal overwrites."""

    told = -1

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n != self.told:  # closing shows the last state again
            print(str(self) if msg is None else msg, file=self.fp)
        self.told = self.n
        return True

    def close(self) -> None:
        if not self.disable:
            self.display()  # of what was done at once, too
        super().close()


def open_progress(
    source: int | Iterable[Any] | None, label: str, unit: str, headless: bool, stream: TextIO | None = None
) -> Plain:
    """A counter to iterate over where ``source`` is an iterable, else to tell of units with ``update(n)``.

    A log gets a line every five seconds at most, and one at the end; where nothing is to be done, none.
    """
    total = source if isinstance(source, int) else None
    items = None if total is not None else source
    if not headless:
        return tqdm(items, total=total, desc=label, unit=f" {unit}", disable=total == 0)
    # sys.__stderr__ is the log of the run; ipykernel's sys.stderr would put every line into the notebook as well.
    return Lines(
        items,
        total=total,
        desc=label,
        unit=f" {unit}",
        file=stream or sys.__stderr__ or sys.stderr,
        ncols=0,
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=0,
        miniters=1,
        disable=total == 0,
    )
