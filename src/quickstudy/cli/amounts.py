"""Amounts as people write them: `3m` of time, `2GB` of space."""

from __future__ import annotations

import re

from quickstudy.errors import PlanError

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_seconds(text: str) -> float:
    """Seconds in a time such as `90s`, `3m`, `1.5h` or `1h30m`.

    Raises:
        PlanError: it is none, or not positive.
    """
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text.strip().lower())
    try:
        if re.sub(r"[\d.]+\s*[a-z]*\s*", "", text.strip().lower()):
            raise ValueError
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    except (KeyError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise PlanError(f"'{text}' is no time; expected such as 90s, 3m or 1h30m")
    return seconds


def parse_bytes(text: str) -> float:
    """Bytes in a size such as `500MB` or `2GB`.

    Raises:
        PlanError: it is none, or not positive.
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?b)", text.strip().lower())
    try:
        size = float(found[1]) * _BYTES[found[2]] if found else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise PlanError(f"'{text}' is no size; expected such as 500MB or 2GB")
    return size
