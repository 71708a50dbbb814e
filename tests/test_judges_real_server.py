"""Both judge roles behind a server that nobody here wrote, whose answers are broken on the way: the account adds up."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from driftbook import validate as stage
from faulty_proxy import FaultyProxy
from planted import HYPOTHESES, run_of, texts_of
from waiting import wait_until

FEW = {"discover": 4, "screen": 3, "validate": 4}
FAULTS = [429, 500, "not json", "hang", "cut", 503, 429, "not json"]


def counted_by(server) -> int:
    """Chat requests in the server's own log."""
    return (Path(server.model).parent / "log.txt").read_text().count("POST /v1/chat/completions")


def test_the_ledger_of_both_roles_adds_up_to_the_servers_own_count(server, tmp_path):
    """A random model is cut before it gives a verdict, so that all are missing, and each was paid once."""
    before = counted_by(server)
    with FaultyProxy(server.base_url, FAULTS, hang=3.0) as proxy:
        judge = {"kind": "endpoint", "model": server.model, "base_url": proxy.base_url, "max_output_tokens": 4}
        judge |= {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0, "timeout_s": 2.0, "concurrency": 2}
        both = {"cheap": judge, "expensive": judge | {"mode": "pair"}}
        texts = texts_of(samples=1, splits=FEW)
        asked = [replace(HYPOTHESES[0], measure={"kind": "judge"})]
        run = run_of(tmp_path, texts, asked, judges=both, cascade="borderline", audit=0, generative=0)
        material = stage.load(run)
        judges = stage.open_judges(run, material)
        frozen = stage.freeze(material, judges, run.section)
        screening = stage.screen(material, judges, run.section)
        tested = stage.holdout_test(material, judges, screening.survivors, run.section, run.progress)
        found = stage.outcomes(tested, run.section)
        claims = stage.claims_table(material, frozen, screening, found)
        claims = claims[claims["hypothesis_id"] == asked[0].hypothesis_id]
        (tmp_path / "data").mkdir()
        metrics = stage.write(tmp_path / "data", frozen, screening, found, claims, judges, run.section)
        ledger = pd.read_parquet(tmp_path / "data" / "ledger.parquet").set_index("judge")
        roles = ledger.loc[[f"{server.model} (cheap)", f"{server.model} (expensive)"]]
        assert not proxy.script and (roles["missing"] == roles["verdicts"]).all() and (roles["verdicts"] >= 4).all()
        assert ledger["calls"].sum() == proxy.asked
        assert ledger["failed"].sum() == len(FAULTS) == sum(n for step, n in proxy.done.items() if step != "good")
        passed = proxy.asked - sum(isinstance(s, int) or s == "not json" for s in FAULTS)
        assert proxy.passed_on == passed == counted_by(server) - before
        answered = ledger["calls"].sum() - ledger["failed"].sum()
        assert ledger["output_tokens"].sum() <= 4 * answered and ledger["input_tokens"].sum() > 100 * answered
        tokens = ledger[["input_tokens", "output_tokens"]].to_numpy().sum()
        assert metrics["cost_usd"] == pytest.approx(tokens / 1e6)
        stored = sqlite3.connect(run.cache / "verdicts" / "answers.sqlite").execute("SELECT COUNT(*) FROM answers")
        assert stored.fetchone()[0] == answered
        assert claims["declined_base"].iloc[0] == 1.0 and not claims["confirmed"].any()
        asked = proxy.asked
        stage.holdout_test(material, judges, screening.survivors, run.section, run.progress)
        assert proxy.asked == asked  # warm: nothing is sent


def test_a_kill_in_the_middle_loses_what_was_under_way_and_no_more(server, tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from driftbook.discovery.hypotheses import Hypothesis
        from driftbook.chat import ChatClient
        from driftbook.judges.endpoint import EndpointJudge
        from driftbook.ledger import Ledger
        url, model, path = sys.argv[1:]
        ledger = Ledger(Path(path), 100.0)
        judge = EndpointJudge(ChatClient("judge", model, url, ledger, concurrency=2, max_tokens=4), retries=0)
        judge.score([f"red {i}" for i in range(24)], [Hypothesis("red", "base")])
        account = ledger.accounts["judge"]
        print(account.calls, account.cached)
        """
    )
    with FaultyProxy(server.base_url) as proxy:
        command = [sys.executable, "-c", script, proxy.base_url, server.model, str(tmp_path / "answers.sqlite")]
        process = subprocess.Popen(command)
        wait_until(lambda: proxy.asked >= 8 or process.poll() is not None, "eight questions are asked")
        assert process.poll() is None, "ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        calls, cached = map(int, done)
        assert calls + cached == 24
        # What was under way may reach the proxy after the kill, so the first process's questions are counted at the
        # end. At most the two in flight were lost.
        assert 6 <= proxy.asked - calls - 2 <= cached < 24
