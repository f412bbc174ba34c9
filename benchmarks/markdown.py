"""What tables of figures are made with."""

from __future__ import annotations

import json
from typing import Any

from common import RESULTS


def load(name: str) -> dict[str, Any]:
    """One result."""
    values: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return values


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def ranged(values: dict[str, float], digits: int = 1, *, scale: float = 1.0) -> str:
    """Median with smallest and largest."""
    median, low, high = (f"{scale * values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def percent(score: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    low, high = score["interval_95"]
    return f"{100 * score['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
