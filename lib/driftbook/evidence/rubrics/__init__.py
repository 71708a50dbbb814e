"""What judges are told. To change one: copy its file, edit the copy, and name it as ``rubric`` of a judge in the
parameter file."""

from __future__ import annotations

from importlib.resources import files


def rubric(name: str) -> str:
    """The rubric that ships under a name: the stem of a text file of this folder."""
    return files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()
