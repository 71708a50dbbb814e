"""What asking models costs: a cache of paid answers, a hard cap that is enforced before dispatch, and the account of a
run."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from driftbook.errors import BudgetError
from driftbook.replies import Answer
from driftbook.store import Database, cached_map

COLUMNS = (
    *("judge", "calls", "cached", "failed", "input_tokens", "output_tokens", "usd", "usd_saved"),
    *("unanswered", "verdicts", "missing", "without"),
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, answer TEXT NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, usd REAL NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS levels (key TEXT PRIMARY KEY, levels TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (key TEXT PRIMARY KEY, reason TEXT NOT NULL, thought TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refused (server TEXT, field TEXT, at REAL NOT NULL, PRIMARY KEY (server, field))
"""


@dataclass
class Account:
    """One line of the ledger: what one model did in this run."""

    calls: int = 0  # requests sent, answered or not
    cached: int = 0
    failed: int = 0  # requests that brought no reply
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    usd_saved: float = 0.0
    unanswered: int = 0  # replies, stored ones too, that were no answer: cut before the first word, refused, filtered
    verdicts: int = 0  # asked for, stored ones too
    missing: int = 0  # of them, could not be had
    without: str = ""  # fields that the server refused, and answered without


class Ledger:
    """Answers on disk under the hash of their request, and the money of this run.

    ``budget_usd``, the parameter ``key``, caps what this run may spend: money spent, the most that calls in flight may
    cost, and what a call that broke off may have cost all count. Safe for threads; several processes may share the file
    (SQLite, WAL). An answer is committed the moment it arrives, so nothing that was paid is lost when the process is
    killed.
    """

    def __init__(self, path: Path, budget_usd: float, key: str = "validate.budget_usd") -> None:
        self.path, self.budget_usd, self.key = path, budget_usd, key
        self.accounts: dict[str, Account] = defaultdict(Account)
        self._in_flight = 0.0
        self._unsure = 0.0
        self._lock = threading.Lock()
        self._db = Database(path, _SCHEMA, "paid answers are bought")

    def close(self) -> None:
        self._db.close()

    def find(self, key: str, judge: str) -> Answer | None:
        """The stored answer, counted as a saving of ``judge``."""
        stored = self.peek(key)
        if stored is not None:
            with self._lock:
                account = self.accounts[judge]
                account.cached += 1
                account.usd_saved += stored.usd
                account.unanswered += not stored.answered
        return stored

    def peek(self, key: str) -> Answer | None:
        return self.peek_all([key]).get(key)

    def peek_all(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The stored answers by key; nothing is counted."""
        query = (
            "SELECT key, answer, input_tokens, output_tokens, usd, levels, coalesce(reason, 'stop'), "
            "coalesce(thought, '') FROM answers LEFT JOIN levels USING (key) LEFT JOIN outcomes USING (key) "
            "WHERE key IN (keys)"
        )
        rows = self._db.select(query, keys)
        return {key: Answer(*r[:4], json.loads(r[4]) if r[4] else None, *r[5:]) for key, *r in rows}

    def made_here(
        self,
        judge: str,
        keys: Sequence[str],
        compute: Callable[[list[str]], Iterable[tuple[Sequence[str], Sequence[Answer]]]],
        bar: Callable[[int], Any] | None = None,
    ) -> dict[str, Answer]:
        """Answers by key of a judge that costs nothing but time: the stored ones, the rest from ``compute`` (see
        :func:`driftbook.store.cached_map`)."""

        def find(wanted: list[str]) -> dict[str, Answer]:
            stored = self.peek_all(wanted)
            with self._lock:
                self.accounts[judge].cached += len(stored)
                self.accounts[judge].usd_saved += sum(a.usd for a in stored.values())
            return stored

        def keep(batch: Sequence[str], answers: Sequence[Answer]) -> None:
            self._store(list(zip(batch, answers, strict=True)), judge)
            with self._lock:
                self.accounts[judge].calls += len(batch)

        return cached_map(keys, find, compute, keep, bar)

    @property
    def spent(self) -> float:
        return sum(a.usd for a in self.accounts.values())

    def reserve(self, judge: str, usd: float) -> None:
        """Set aside the most that a call may cost, before it is sent. Raises BudgetError when the cap would be
        passed."""
        with self._lock:
            taken = self.spent + self._in_flight + self._unsure
            if taken + usd > self.budget_usd + 1e-12:
                raise BudgetError(
                    f"{self.key} is {self.budget_usd:.4g}: {self.spent:.4g} spent, "
                    f"{self._in_flight + self._unsure:.4g} in flight, and the next call of {judge} may cost {usd:.2g}. "
                    "Answers so far are kept: raise the budget and run again"
                )
            self._in_flight += usd
            self.accounts[judge].calls += 1

    def settle(self, key: str, judge: str, reserved: float, answer: Answer) -> None:
        """Store an answer and replace its reservation by what it did cost."""
        self._store([(key, answer)], judge)
        with self._lock:
            self._in_flight -= reserved
            account = self.accounts[judge]
            account.input_tokens += answer.input_tokens
            account.output_tokens += answer.output_tokens
            account.usd += answer.usd
            account.unanswered += not answer.answered

    def _store(self, answers: Sequence[tuple[str, Answer]], judge: str) -> None:
        now = time.time()
        # an answer counts once it stands in answers: what belongs to it comes first
        self._db.put("levels", [(k, json.dumps(a.levels)) for k, a in answers if a.levels])
        told = [(k, a.reason, a.thought) for k, a in answers if a.reason != "stop" or a.thought]
        self._db.put("outcomes", told)
        rows = [(k, judge, a.text, a.input_tokens, a.output_tokens, a.usd, now) for k, a in answers]
        self._db.put("answers", rows)

    def release(self, judge: str, reserved: float, may_be_billed: bool) -> None:
        """A call that brought no answer. One that broke off after it was sent may still be billed: it stays against
        the cap."""
        with self._lock:
            self._in_flight -= reserved
            self._unsure += reserved if may_be_billed else 0.0
            self.accounts[judge].failed += 1

    def note_verdicts(self, judge: str, asked: int, missing: int) -> None:
        """Count verdicts that a judge was asked for, and those of them that could not be had."""
        with self._lock:
            self.accounts[judge].verdicts += asked
            self.accounts[judge].missing += missing

    def refused(self, server: str) -> list[str]:
        """The fields that a server is known to refuse, sorted."""
        query = "SELECT field FROM refused WHERE server = ? ORDER BY field"
        return [field for (field,) in self._db.run(lambda db: db.execute(query, (server,)).fetchall())]

    def note_refused(self, server: str, fields: Sequence[str]) -> None:
        """Remember, for later runs, the fields that a server refuses."""
        self._db.put("refused", [(server, field, time.time()) for field in fields])

    def table(self) -> pd.DataFrame:
        """One row per judge with the columns of ``ledger.parquet``; savings of the cache stand apart from what was
        paid."""
        rows = [{"judge": judge, **asdict(account)} for judge, account in sorted(self.accounts.items())]
        return pd.DataFrame(rows, columns=list(COLUMNS))
