"""Data inside a page: escaped JSON, gzip and base64 blocks, quantized arrays, and tables as CSV."""

from __future__ import annotations

import base64
import gzip
import html
import json
from typing import Any

import numpy as np
import pandas as pd

# In HTML, `</script` and `<!--` end or change the state of a script block wherever they stand, JSON strings included.
# U+2028 and
# U+2029 are line ends to older JavaScript parsers.
_SCRIPT_UNSAFE = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def escape(value: object) -> str:
    """Text for HTML content and for quoted attributes."""
    return html.escape(str(value), quote=True)


def script_json(value: Any) -> str:
    """JSON that may stand inside a ``<script>`` element: no text in it can end the element.

    NaN and infinities become null, since a browser's JSON parser refuses them.
    """
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(
        _SCRIPT_UNSAFE
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def pack(data: bytes | str) -> str:
    """gzip and base64; the same bytes give the same text. Read in the page with ``DecompressionStream``."""
    raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode("ascii")


def unpack(text: str) -> bytes:
    """The inverse of :func:`pack`."""
    return gzip.decompress(base64.b64decode(text))


MOST_STEPS = 63  # of quantized values: one step is less than a pixel of a trace


def quantize(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``round(values / scale)`` clipped to ±63, int8; NaN becomes -128.

    ``scale`` broadcasts against ``values``; one step is ``scale``, so the largest error inside the range is half of it.
    """
    filled = np.where(np.isfinite(values), values, 0.0)
    steps = np.clip(np.rint(filled / scale), -MOST_STEPS, MOST_STEPS).astype(np.int8)
    return np.where(np.isfinite(values), steps, np.int8(-128))


def differences(steps: np.ndarray, axis: int) -> np.ndarray:
    """int8 differences along an axis, modulo 256, the first entry as it is: neighbours are alike and pack to less."""
    wide = np.diff(steps.astype(np.int16), axis=axis, prepend=0)
    return wide.astype(np.uint8).view(np.int8)


def to_int16(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Coordinates as int16 over their own range, with offset and step: ``value = offset + step * stored``."""
    values = np.asarray(values, dtype=np.float64)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("coordinates must be finite")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    step = (high - low) / 65_534 or 1.0
    return (np.rint((values - low) / step) - 32_767).astype(np.int16), low + 32_767 * step, step


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV. Text that a spreadsheet would run as a formula gets an apostrophe before it."""
    safe = frame.copy()
    for column in safe.columns:
        if safe[column].dtype.kind not in "biufMm":
            safe[column] = safe[column].map(_not_a_formula)
    return safe.to_csv(index=False, lineterminator="\n")


def _not_a_formula(value: Any) -> Any:
    dangerous = isinstance(value, str) and (
        value[:1] in "=+@\t\r" or (value[:1] == "-" and value[1:2] not in (" ", ""))
    )
    return f"'{value}" if dangerous and value else value
