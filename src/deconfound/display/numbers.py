"""Numbers as a reader sees them in tables and pages."""

import math
from typing import Any


def number(value: float, digits: int) -> str:
    """A number with `digits` decimals, fewer for large ones and more for tiny ones.

    "∞" for +inf, "–" for NaN.
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value and abs(value) < 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:.{_decimals(value, digits)}f}"


def mean_and_sd(mean: float, sd: float, digits: int = 3) -> str:
    """ "0.712 ± 0.031"; the mean alone where the sd is NaN, "–" where the mean is NaN.

    Decimals are those of `number` for the mean.
    """
    if math.isnan(mean) or math.isnan(sd):
        return number(mean, digits)
    return f"{number(mean, digits)} ± {sd:.{_decimals(mean, digits)}f}"


def signed(value: float, digits: int = 3) -> str:
    """ "+0.083" or "−0.120", with the minus of mathematics."""
    return f"{value:+.{digits}f}".replace("-", "−")


def counted(count: int, what: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {what}" + "s" * (count != 1)


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - len(str(int(abs(value)))) + 1)


def without_nan(value: Any) -> Any:
    """A value of JSON with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
