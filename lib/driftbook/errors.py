"""Errors that a user can act on."""

from __future__ import annotations


class DriftbookError(Exception):
    """A problem in what the user supplied or in the state of a run.

    The message names the file (where there is one), the key or the item, and the remedy. The command line prints it
    without a traceback; notebooks show it as the reason of a failed cell.
    """


class ParameterError(DriftbookError):
    """A parameter file, or a notebook's parameter cell, that does not validate."""


class PromptError(DriftbookError):
    """A prompt file that is missing, empty, malformed, or holds a prompt that the model cannot take."""


class ModelError(DriftbookError):
    """A model that cannot be found, loaded, or read at the hook points that were asked for."""


class BudgetError(DriftbookError):
    """A bound on bytes, tokens or money that the work would exceed. Raised before the work starts."""


class CacheError(DriftbookError):
    """A cache file that cannot be used and could not be repaired."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without the advice of its later lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".")
    return f"{type(error).__name__}: {said}" if isinstance(error, KeyError) else said or type(error).__name__
