"""How numbers are written, everywhere: 0 is written for 0 alone, and no more digits than a reader needs.

A p-value that its permutations cannot resolve says so; an e-value beyond a million is a power of ten.
"""

from __future__ import annotations

import math

NEVER = "not read"


def number(value: float) -> str:
    """Three significant digits, without trailing zeros or needless exponents."""
    if value == 0:
        return "0"
    if math.isinf(value):  # an end of an interval of which so few prompts say nothing
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits}e{int(power)}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """Rounded, to no digits from 10 on; what rounds to 0 without being 0 keeps its first digit that is not."""
    if math.isnan(value):
        return NEVER
    if abs(value) >= 10:
        digits = 0
    if 0 < abs(value) < 0.5 * 10**-digits:
        digits = math.ceil(-math.log10(abs(value)))
    text = f"{value:{'+' if signed and value else ''},.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if text.strip("+-0.") else "0"


def apart(base: float, changed: float, digits: int) -> tuple[str, str]:
    """Both numbers, with as many digits as it takes to tell them apart, three more at most."""
    first, second = fixed(base, digits), fixed(changed, digits)
    for more in range(max(1, digits), digits + 4):
        if first != second or base == changed:
            break
        first, second = (f"{x:,.{more}f}" for x in (base, changed))
    return first, second


def share(value: float) -> str:
    """A share of answers: 0.1 is "10%"; what is neither none nor all is never written as such."""
    if math.isnan(value):
        return NEVER
    if 0.995 <= value < 1:
        return f"{100 * value:.{min(4, max(1, math.ceil(-math.log10(1 - value)) - 2))}f}%"
    return f"{fixed(100 * value, 0)}%"


def points(difference: float) -> str:
    """A difference of shares, signed: 0.2 is "+20"; the unit is points."""
    return fixed(100 * difference, 0, signed=True).replace("-", "−")


def p_value(p: float, permutations: int | None = None) -> str:
    """Two significant digits. ``permutations`` that none was as extreme among give a bound: "< 1/1,000"."""
    if math.isnan(p):
        return NEVER
    if permutations is not None and p <= (1 + 1e-9) / (permutations + 1):
        return f"< 1/{permutations:,}"
    return number(float(f"{p:.2g}"))


def e_value(e: float) -> str:
    """Up to a million as it is, beyond as a power of ten: "10^12"."""
    if math.isnan(e):
        return NEVER
    return f"10^{math.floor(math.log10(e))}" if e >= 1e6 else number(e)
