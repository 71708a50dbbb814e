"""The command line, which ``make`` calls too. Errors that a user can act on carry no traceback."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.members import NAME
from driftbook.parameters import STAGES, BenchExperiment, load_experiment
from driftbook.workbook import compare, state
from driftbook.workbook.drawing import front_page, redraw_all
from driftbook.workbook.runner import room, run_experiment
from driftbook.workbook.runs import Layout, find_root, label, plain_warnings
from driftbook.workbook.state import parts


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (it failed), 2 (the command line is wrong) or 130 (interrupted)."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    plain_warnings()
    try:
        return args.command(args, Layout.of(find_root()))
    except DriftbookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full or read-only, a file where a folder belongs
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:  # libraries that write weights have their own error for a full disk
        if not (hint := room(str(error))):
            raise
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the last good runs and all caches are kept", file=sys.stderr)
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="driftbook", description="A workbook that tells how a language model changed."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, does, help: str, many: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=does)
        if many:
            sub.add_argument("experiments", nargs="+", metavar="EXP", help="name of a file in params/, without .yml")
        return sub

    sub = command("run", _run, "run an experiment; stages that hold are skipped")
    sub.add_argument(
        "--stage", action="append", metavar="STAGE", help=f"only this and what it needs ({', '.join(STAGES)})"
    )
    sub.add_argument("--force", action="store_true", help="run the named stages even if nothing changed")
    sub.add_argument("--keep-going", action="store_true", help="of a series: go on after a change that fails")
    sub.add_argument("--cell-timeout", type=float, metavar="SECONDS", help="fail a cell that takes longer")
    command("why", _why, "say per stage whether it would run, and which component changed")
    sub = command("plan", _plan, "dry run: texts, tokens, time, memory, money")
    sub.add_argument(
        "--no-calibration", action="store_true", help="use stored speeds instead of measuring for a few seconds"
    )
    command("verify", _verify, "hash every output again and compare with run.json")
    command("render", _render, "draw the reports again from what is stored")
    sub = command("compare", _compare, "show what differs between two experiments", many=False)
    sub.add_argument("a", metavar="A")
    sub.add_argument("b", metavar="B")
    sub = command("check", _check, "hold what changed against rules: exit code 0 or 1, JUnit XML, Markdown")
    sub.add_argument("--allow", type=Path, default=Path("params/allow.yml"), metavar="FILE", help="rules; docs/gate.md")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="of check.xml and check.md; default: outputs/EXP")
    sub = command("import", _import, "make a table of texts of what other tools wrote; docs/exchange.md", many=False)
    sub.add_argument("format", metavar="FORMAT", help="inspect, lm-eval, alpaca-eval, openai-batch, chat, columns")
    sub.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files or folders, the base's first")
    sub.add_argument("--to", type=Path, required=True, metavar="FILE", help="the table: .parquet, .jsonl or .csv")
    sub.add_argument("--by", choices=("prompt", "id"), default="prompt", help="what belongs together; default: prompt")
    sub.add_argument("--with", dest="options", action="append", default=[], metavar="NAME=VALUE", help="of the format")
    sub = command("label", _label, "write a page on which people label answers of an experiment", many=False)
    sub.add_argument("experiment", metavar="EXP")
    sub.add_argument("--claim", action="append", default=[], metavar="CLAIM", help="its statement, id or measure")
    sub.add_argument("--count", type=int, default=60, metavar="N", help="answers of each claim (default 60)")
    sub = command("judge-check", _judge_check, "hold the judges of an experiment against people's labels", many=False)
    sub.add_argument("experiment", metavar="EXP")
    sub.add_argument("--labels", type=Path, required=True, metavar="FILE", help="a table: text, claim, label")
    sub = command("export", _export, "write an experiment's findings and trait vectors for other tools", many=False)
    sub.add_argument("experiment", metavar="EXP", help="name of a file in params/, without .yml")
    sub.add_argument(
        "--format",
        action="append",
        metavar="FORMAT",
        help="csv, json, huggingface; of vectors: persona-vectors, repeng, steering-vectors; default all",
    )
    sub.add_argument("--trait", action="append", metavar="TRAIT", help="only this trait or combination")
    sub.add_argument("--layers", choices=("all", "chosen"), default="all", help="every layer, or the chosen one alone")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="default: outputs/EXP/export")
    sub = command("example", _example, "write the front page of an experiment without links to its reports", many=False)
    sub.add_argument("experiment", metavar="EXP")
    sub.add_argument("file", type=Path, metavar="FILE")
    command("index", _index, "draw outputs/index.html, the list of all experiments", many=False)
    sub = command("cache", _cache, "sizes of the shared caches; evict or explain embeddings", many=False)
    what = sub.add_subparsers(metavar="size|evict|explain", dest="what")
    what.add_parser("size", help="bytes of every shared cache, and the embedders behind the embeddings (default)")
    evict = what.add_parser("evict", help="delete embeddings and give their space back; the oldest go first")
    evict.add_argument("--max-mb", type=float, metavar="MB", help="until the vectors fit into this")
    evict.add_argument("--older-than-days", type=float, metavar="DAYS", help="those written before")
    evict.add_argument("--keep", metavar="EXP", help="those of every embedder but that of EXP")
    explain = what.add_parser("explain", help="why the embedding of a text is or is not in the cache")
    explain.add_argument("experiment", metavar="EXP", help="whose embedder is asked")
    explain.add_argument("text", metavar="TEXT", help="the answer as it stands in texts.parquet; - reads it from stdin")
    sub = command("clean", _clean, "remove failed and abandoned runs; with EXP, all of its outputs", many=False)
    sub.add_argument("experiments", nargs="*", metavar="EXP")
    sub.add_argument("--cache", action="store_true", help="remove the shared caches, converted models included")
    return parser


def _file(layout: Layout, experiment: str) -> Path:
    """The parameter file of an experiment that was given by name or by path."""
    given = Path(experiment)
    return given if given.suffix in (".yml", ".yaml") else layout.parameters(experiment)


def _run(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook.power import few_prompts  # scipy: other commands do not need it

    good = True
    for experiment in args.experiments:
        file = _file(layout, experiment)
        if note := few_prompts(parts(file)[0], layout.root):
            print(f"{file.stem}: beware: {note}")
        more = {"cell_timeout": args.cell_timeout, "keep_going": args.keep_going}
        results = run_experiment(file, args.stage, args.force, outputs=layout.outputs, **more)
        for result in results:
            if not (result.good or result.stage):
                print(f"{result.experiment}: left out: {result.reason}")
        good = good and all(r.good for r in results)
        page = front_page(layout, file.stem)
        if page.is_file():
            print(f"report: {page}")
    return 0 if good else 1


def _why(args: argparse.Namespace, layout: Layout) -> int:
    for stage, (status, reasons) in _of_parts(args, layout, state.explain):
        print(f"{stage}: {status}")
        for reason in reasons:
            print(f"  {reason}")
    return 0


def _of_parts(args: argparse.Namespace, layout: Layout, ask: Callable[..., dict]) -> Iterator[tuple[str, Any]]:
    """What ``ask`` says of the stages of each experiment, and of the changes of a series first, each stage once."""
    for experiment in args.experiments:
        said: dict[str, Any] = {}
        for file in parts(_file(layout, experiment)):
            said |= {label(file.stem, stage): v for stage, v in ask(file, layout.outputs).items()}
        yield from said.items()


def _plan(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook.plan import keep, plan, series_plan, written  # pandas, as in all that follow, or more
    from driftbook.workbook.power import few_prompts

    for experiment in args.experiments:
        *members, file = parts(_file(layout, experiment))
        first = members[0] if members else file
        planned = plan(first, layout, calibrate=not args.no_calibration)
        if members:
            planned = series_plan(planned, file.stem, len(members))
        keep(planned, layout)
        print(written(planned))
        if note := few_prompts(first, layout.root):
            print(f"beware: {note}")
    return 0


def _verify(args: argparse.Namespace, layout: Layout) -> int:
    good = True
    for stage, problems in _of_parts(args, layout, state.verify):
        print(f"{stage}: {'as recorded' if not problems else 'NOT as recorded'}")
        for problem in problems:
            print(f"  {problem}")
        good = good and not problems
    return 0 if good else 1


def _render(args: argparse.Namespace, layout: Layout) -> int:
    for experiment in args.experiments:
        for file in parts(_file(layout, experiment)):
            for folder in redraw_all(file, layout.outputs):
                print(f"report: {folder / 'report.html'}")
    return 0


def _example(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook.frontpage import alone  # pandas and more, which `--help` and `why` do without
    from driftbook.workbook.records import write_page

    name = _file(layout, args.experiment).stem
    page = layout.folder(name) / "index.html"
    if not page.is_file():
        raise DriftbookError(f"{page} is missing: make run EXP={name}")
    args.file.parent.mkdir(parents=True, exist_ok=True)
    print(f"report: {write_page(args.file, alone(page.read_text(encoding='utf-8')))}")
    return 0


def _compare(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook import reports  # pandas and more, which `--help` and `why` do without
    from driftbook.workbook.comparison import members_apart

    names = [_file(layout, name).stem for name in (args.a, args.b)]
    a, b = map(layout.folder, names)
    print(compare.written(compare.compare(a, b)))
    if (pair := members_apart(a, b)) is not None:
        print(f"{pair.title}\n{pair.frame[pair.frame['confirmed']].to_string(index=False, max_rows=20)}")
    out = layout.outputs / f"compare-{'-'.join(names).replace(':', '-')}.html"
    reports.render_compare(a, b, out)
    print(f"report: {out}")
    return 0


def _check(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.evidence.gate import passed, read_allow  # scipy and pandas
    from driftbook.workbook import gate

    allow, where = read_allow(layout.root / args.allow, layout.root)
    good = True
    for experiment in args.experiments:
        file = _file(layout, experiment)
        if changes := getattr(load_experiment(file), "members", []):
            answers = gate.check_series([f"{file.stem}:{m.name}" for m in changes], layout, allow, where)
        else:
            answers = {file.stem: gate.check_experiment(file.stem, layout, allow, where)}
        print(gate.written(answers))
        for path in gate.write(answers, args.to or layout.folder(file.stem)):
            print(f"report: {path}")
        good = good and all(passed(own) for own in answers.values())
    return 0 if good else 1


def _import(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.exchange.matching import read, write  # pandas

    if bad := [option for option in args.options if "=" not in option]:
        raise DriftbookError(f"--with {bad[0]}: write NAME=VALUE")
    options = dict(option.split("=", 1) for option in args.options)
    table, counts = read(args.format, args.paths, options, args.by)
    write(table, args.to)
    for what, number in sorted(counts.items(), key=lambda c: c[0].startswith("left out")):
        print(f"{what}: {number:,}")
    print(f"{args.to}\nnames: {{base: THE FIRST, changed: THE OTHER}}\nintervention: {{kind: texts, path: {args.to}}}")
    return 0


def _label(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook import people  # pandas and more, which `--help` and `why` do without

    page = people.label_page(_file(layout, args.experiment), layout, args.claim, args.count)
    print(f"open in a browser: {page}")
    print(f"then: driftbook judge-check {Path(args.experiment).stem} --labels FILE")
    return 0


def _judge_check(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook import people  # pandas and more, which `--help` and `why` do without

    agreement, effects = people.judge_check(_file(layout, args.experiment), layout, args.labels)
    print(people.written(agreement, effects))
    return 0


def _export(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.exchange import findings  # pandas and more, which `--help` and `why` do without
    from driftbook.models import formats  # torch
    from driftbook.models.vectors import VectorSet
    from driftbook.workbook.claims import read_table

    name = _file(layout, args.experiment).stem
    asked = args.format or [*findings.FORMATS, *formats.FORMATS]
    if unknown := [f for f in asked if f not in (*findings.FORMATS, *formats.FORMATS)]:
        known = ", ".join((*formats.FORMATS, *findings.FORMATS))
        raise DriftbookError(f"there is no format {unknown[0]!r}; there are {known}")
    folder = args.to or layout.parent(name, "traits") / "export"
    vectors = layout.stage(name, "traits") / "data"
    places = {"claims": layout.stage(name, "validate") / "data", "panel": layout.stage(name, "cluster") / "data"}
    tables = {n: read_table(p / f"{n}.parquet") for n, p in places.items() if (p / f"{n}.parquet").is_file()}
    told, made = ([f for f in asked if f in known] for known in (findings.FORMATS, formats.FORMATS))
    if made and not vectors.is_dir() and (args.format or not tables):
        raise DriftbookError(f"{vectors}: no vectors there yet; run `make traits EXP={name}` first")
    if told and not tables and args.format:
        raise DriftbookError(f"{places['claims']}: no claims there yet; run `make run EXP={name}` first")
    written = findings.export(tables, told if tables else [], folder, f"{name}: what changed")
    if made and vectors.is_dir():
        written += formats.export(VectorSet.load(vectors), made, folder, args.trait, args.layers)
    for path in written:
        print(path)
    return 0


def _index(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.workbook import reports  # pandas and more, which `--help` and `why` do without

    layout.outputs.mkdir(parents=True, exist_ok=True)
    reports.render_outputs(layout.outputs)
    print(f"report: {layout.outputs / 'index.html'}")
    return 0


def _cache(args: argparse.Namespace, layout: Layout) -> int:
    from driftbook.discovery.embeddings import EmbeddingCache  # pandas and more, which `--help` and `why` do without

    folder = layout.cache / "embeddings"
    if args.what in (None, "size"):
        for path in sorted(p for p in layout.cache.glob("*") if p.is_dir()):
            files = [f.stat().st_size for f in path.rglob("*") if f.is_file()]
            print(f"{path.name}: {sum(files) / 1e6:,.1f} MB in {len(files):,} files")
        if folder.is_dir():
            with EmbeddingCache(folder) as cache:
                for embedder in cache.embedders():
                    print(f"  {embedder.rows:,} embeddings, {embedder.bytes / 1e6:,.1f} MB: {embedder.said}")
        return 0
    if not folder.is_dir():
        raise DriftbookError(f"{folder}: no text was embedded here yet; `make cluster` does it")
    with EmbeddingCache(folder) as cache:
        if args.what == "explain":
            text = sys.stdin.read() if args.text == "-" else args.text
            print(cache.explain(text, _embedder(layout, args.experiment).identity))
            return 0
        if args.max_mb is None and args.older_than_days is None and args.keep is None:
            raise DriftbookError("cache evict: say what goes, by --max-mb, --older-than-days or --keep")
        before = cache.size()
        gone = cache.evict(
            max_bytes=None if args.max_mb is None else int(args.max_mb * 1e6),
            older_than_days=args.older_than_days,
            keep=None if args.keep is None else _embedder(layout, args.keep).identity,
        )
        after = cache.size()
    print(
        f"{gone:,} of {before.rows:,} embeddings removed; {before.bytes / 1e6:,.1f} MB became {after.bytes / 1e6:,.1f}"
    )
    return 0


def _embedder(layout: Layout, experiment: str):
    """The embedder of an experiment's cluster stage; its model is not loaded."""
    from driftbook.discovery.embeddings import Embedder  # pandas and more, which `--help` and `why` do without

    file = _file(layout, experiment)
    found = load_experiment(file)
    if isinstance(found, BenchExperiment):
        raise DriftbookError(f"{file}: a bench has no cluster section; name an experiment")
    return Embedder(found.cluster.embedder, instruction=found.cluster.instruction, device=found.base.device)


def _clean(args: argparse.Namespace, layout: Layout) -> int:
    if args.experiments:
        for name in args.experiments:
            if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]*(:{NAME})?", name):
                raise DriftbookError(f"{name!r} is not the name of an experiment")
        doomed = [layout.folder(name) for name in args.experiments]
        doomed += [folder.with_name(f"{folder.name}.failed") for folder in doomed]
    else:
        patterns = (".lab", "*.failed", ".staging-*", ".retired-*")
        doomed = [
            p for pattern in patterns for at in ("", "*/", "*/members/*/") for p in layout.outputs.glob(at + pattern)
        ]
    if args.cache:
        doomed.append(layout.cache)
    for folder in doomed:
        if folder.is_dir():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
            print(f"removed {folder}")
    return 0
