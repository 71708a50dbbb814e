"""What judges cost: a cache of paid answers, a hard cap that is enforced before dispatch, and the account of a run."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from driftbook.errors import BudgetError, CacheError

COLUMNS = ("judge", "calls", "cached", "failed", "input_tokens", "output_tokens", "usd", "usd_saved")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, answer TEXT NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, usd REAL NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS levels (key TEXT PRIMARY KEY, levels TEXT NOT NULL)
"""


def request_key(request: dict[str, Any]) -> str:
    """sha256 of everything that shapes an answer: model, messages, parameters, schema version, sample index."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a judge model said, before anyone reads it."""

    text: str
    input_tokens: int
    output_tokens: int
    usd: float
    levels: dict[str, dict[str, float]] | None = None  # statement to level to probability, where the server tells


@dataclass
class Account:
    """One line of the ledger: what one judge did in this run."""

    calls: int = 0  # requests sent, answered or not
    cached: int = 0
    failed: int = 0  # requests that brought no answer
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    usd_saved: float = 0.0


class Ledger:
    """Answers on disk under the hash of their request, and the money of this run.

    ``budget_usd``, the parameter ``key``, caps what this run may spend: money spent, the most that calls in flight may
    cost, and what a call that broke off may have cost all count. Safe for threads; several processes may share the file
    (SQLite, WAL). An answer is committed the moment it arrives, so nothing that was paid is lost when the process is
    killed.
    """

    def __init__(self, path: Path, budget_usd: float, key: str = "validate.budget_usd") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.budget_usd, self.key = path, budget_usd, key
        self.accounts: dict[str, Account] = defaultdict(Account)
        self._in_flight = 0.0
        self._unsure = 0.0
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.DatabaseError as reason:
            raise CacheError(
                f"{path} is not a usable verdict cache ({reason}): move it away, paid answers start anew"
            ) from None

    def close(self) -> None:
        self._db.close()

    def find(self, key: str, judge: str) -> Answer | None:
        """The stored answer, counted as a saving of ``judge``."""
        stored = self.peek(key)
        if stored is not None:
            with self._lock:
                self.accounts[judge].cached += 1
                self.accounts[judge].usd_saved += stored.usd
        return stored

    def peek(self, key: str) -> Answer | None:
        with self._lock:
            row = self._db.execute(
                "SELECT answer, input_tokens, output_tokens, usd, levels FROM answers LEFT JOIN levels USING (key) "
                "WHERE key = ?",
                (key,),
            ).fetchone()
        return Answer(*row[:4], json.loads(row[4]) if row[4] else None) if row else None

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
        with self._lock:
            if answer.levels:
                self._db.execute("INSERT OR REPLACE INTO levels VALUES (?, ?)", (key, json.dumps(answer.levels)))
            self._db.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, judge, answer.text, answer.input_tokens, answer.output_tokens, answer.usd, time.time()),
            )
            self._in_flight -= reserved
            account = self.accounts[judge]
            account.input_tokens += answer.input_tokens
            account.output_tokens += answer.output_tokens
            account.usd += answer.usd

    def release(self, judge: str, reserved: float, may_be_billed: bool) -> None:
        """A call that brought no answer. One that broke off after it was sent may still be billed: it stays against
        the cap."""
        with self._lock:
            self._in_flight -= reserved
            self._unsure += reserved if may_be_billed else 0.0
            self.accounts[judge].failed += 1

    def table(self) -> pd.DataFrame:
        """One row per judge with the columns of ``ledger.parquet``; savings of the cache stand apart from what was
        paid."""
        rows = [{"judge": judge, **asdict(account)} for judge, account in sorted(self.accounts.items())]
        return pd.DataFrame(rows, columns=list(COLUMNS))
