"""Wording for people: counts with their nouns, shares and probabilities, names and commands, as messages have them.

Programs get numbers and names as they are, in JSON and CSV.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""A character that moves the cursor of a terminal or ends a line."""


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things, such as `1 file`, `1,200 files` and, with `file is` and `files are`, `1 file is`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def as_percent(share: float, digits: int = 1) -> str:
    """Write a share as percent, such as `91.4 %`, in so many digits or, where it would look like all or none, in more.

    299 of 300 are not 100 %: of a share that is not quite 0 or 1, up to three digits more say so.
    """
    rounded = [f"{100 * share:.{digits + more}f}" for more in range(4)]
    telling = [text for text in rounded if 0 < float(text) < 100] if 0 < share < 1 else []
    return f"{(telling or rounded)[0]} %"


def as_probability(probability: float, digits: int = 1) -> str:
    """Write what a model thinks probable as percent, such as `97.3 %`, `> 99.9 %` and `< 0.1 %`.

    No classifier is certain, so none reads as if it were; further digits, as a counted share may have, would be a
    precision that no calibration has. What is exactly 0 or 1 has been rounded to that by 32 bits.
    """
    text, step = f"{100 * probability:.{digits}f}", 10**-digits
    if float(text) >= 100:
        return f"> {100 - step:.{digits}f} %"
    return f"{text} %" if float(text) > 0 else f"< {step:.{digits}f} %"


def printable(name: object) -> str:
    """Write the name of a file or class, on one line; what would act on the terminal is an escape."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(name))


def quoted(names: Iterable[str], *, most: int = 5) -> str:
    """List names for a message, in quotation marks; of more than so many the first, and an ellipsis."""
    marked = [f"'{printable(name)}'" for name in names]
    return ", ".join(marked[:most]) + (", …" if len(marked) > most else "")


def pasted(*words: object, program: str = "quickstudy") -> str:
    """Write a command as it can be pasted into this system's shell, whatever the names of files in it."""
    import shlex
    import subprocess

    texts = [program, *map(str, words)]
    if os.name == "nt":
        return subprocess.list2cmdline(texts)
    # A name with an apostrophe, such as d'été, reads better in double quotes, unless a shell would expand it there.
    return " ".join(
        f'"{text}"' if "'" in text and not re.search(r'["$`\\!\n]', text) else shlex.quote(text) for text in texts
    )
