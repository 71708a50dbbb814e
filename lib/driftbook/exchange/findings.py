"""Claims and the panel of an experiment as CSV, as JSON and as a folder that Hugging Face's ``datasets`` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

FORMATS = ("csv", "json", "huggingface")


def export(tables: Mapping[str, pd.DataFrame], formats: Sequence[str], folder: Path, title: str) -> list[Path]:
    """Write every table in every format into ``folder``: ``<name>.csv``, ``<name>.json`` (records), and
    ``huggingface/`` with a parquet file a table and a card that makes each a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for form in formats:
        if form == "huggingface":
            written += _dataset(tables, folder / form, title)
            continue
        for name, table in tables.items():
            path = folder / f"{name}.{form}"
            if form == "csv":
                table.to_csv(path, index=False)
            else:
                records = table.to_json(orient="records", double_precision=15)  # NaN becomes null
                path.write_text(json.dumps(json.loads(records), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            written.append(path)
    return written


def _dataset(tables: Mapping[str, pd.DataFrame], folder: Path, title: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name, table in tables.items():
        paths.append(folder / f"{name}.parquet")
        table.to_parquet(paths[-1], index=False)
    head = {
        "pretty_name": title,
        "tags": ["driftbook"],
        "configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in tables],
    }
    rows = "\n".join(f"- `{name}`: {len(table):,} rows; {', '.join(table.columns)}" for name, table in tables.items())
    card = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {title}\n\n{rows}\n\nWritten by driftbook.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return [*paths, folder / "README.md"]
