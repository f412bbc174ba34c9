"""What the page is told, as JSON values: the state of a session, lists of photos, the map."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import LabellingError
from quickstudy.labelling.choosing import Pick, alike_rows
from quickstudy.labelling.knowledge import figure_of, figures_of_classes
from quickstudy.labelling.session import Session
from quickstudy.labelling.training import Trainer

AHEAD = 10
"""The number of photos that a page has in hand."""
MOST_LISTED = 96
"""The most photos that one answer lists."""
_GUESSES = 3
_MOST_NAMED = 20
_LITTLE = 0.5  # points that 100 more labels bring, below which more pay little


def photo_number(session: Session, name: str) -> int:
    """Find a photo by the name that browsers give it.

    Raises:
        LabellingError: there is no such photo.
    """
    number = session.photos.number_by_name(name)
    if number is None:
        raise LabellingError(f"There is no photo {name[:64]!r}; load the page again")
    return number


def describe(session: Session, trainer: Trainer, who: str, shown: str = "") -> dict[str, Any]:
    """Describe everything that a page shows besides photos, to one browser.

    Args:
        session: the session.
        trainer: its training.
        who: name of the browser.
        shown: name of the photo that it shows; empty for none.
    """
    at = session.photos.number_by_name(shown)
    version, knowledge, figures = session.version, session.knowledge, session.figures
    picks = session.next_for(who, AHEAD)
    total = len(session.photos) - len(session.unusable)
    waiting = _waiting(session)
    judged = figures_of_classes(figures.cross)
    forecasts = {gain.name: _gain(gain) for gain in figures.gains}
    overall = forecasts.get("")
    undo = session.labels.to_undo(who, before=session.began)
    return {
        "session": session.id,
        "version": version,
        "title": session.photos.source.resolve().name,
        "manifest": session.photos.manifest.name,
        "total": total,
        "computed": session.computed,
        "extracted": session.extracted,
        "several": session.several,
        "separators": session.separators,
        "labelled": int(session.labelled.sum()),
        "answered": int(session.answered.sum()),
        "unusable": [
            {"name": session.photos.title(number), "reason": reason}
            for number, reason in [*session.unusable.items()][:_MOST_NAMED]
        ],
        "trouble": session.trouble,
        "classes": [
            {
                "name": name,
                "labels": labels,
                "waiting": waiting.get(name, 0),
                "cross": judged.get(name),
                "gain": forecasts.get(name),
            }
            for _, name, labels in session.classes()
        ],
        "next": [_asked(session, pick) for pick in picks],
        "shown": None if at is None else photo_values(session, at),
        "can_train": bool(session.told_apart(session.counts, int(session.labelled.sum()))),
        "control": figure_of(figures.control),
        "control_wanted": len(session.candidates),
        "cross": figure_of(figures.cross),
        "gain": overall,
        "enough": bool(overall and overall["points"] + overall["deviation"] < _LITTLE),
        "mistakes": len(figures.mistakes),
        "conflicts": len(conflicts(session)),
        "milliseconds": knowledge.milliseconds,
        "learned_from": knowledge.labels,
        "map": session.places is not None,
        "undo": {"kind": undo.kind, "names": undo.given, "count": len(undo.photos)} if undo else None,
        "training": {"state": trainer.state, **trainer.said},
    }


def _waiting(session: Session) -> dict[str, int]:
    """Count the photos without an answer by the labels that the head suggests for them."""
    knowledge = session.knowledge
    if knowledge.head is None or knowledge.given is None or knowledge.known is None:
        return {}
    free = _suggestible(session)
    return dict(zip(knowledge.head.classes, knowledge.given[free].sum(axis=0).tolist(), strict=True))


def _suggestible(session: Session) -> NDArray[np.bool_]:
    """Tell of which of the photos that the head knows (at most n) it may suggest a label in the grid."""
    known = session.knowledge.known
    if known is None:
        return np.zeros(0, np.bool_)
    free: NDArray[np.bool_] = known & session.free()[: len(known)]
    free[session.waits_as_check(np.arange(len(known)))] = False
    return free


def _gain(gain: Any) -> dict[str, Any]:
    return {"more": gain.more, "points": round(gain.points, 1), "deviation": round(gain.deviation, 1)}


def _asked(session: Session, pick: Pick) -> dict[str, Any]:
    values = photo_values(session, pick.row)
    return {
        **values,
        "reason": "check" if values["check"] else pick.reason,
        "of": list(pick.of),
        "alike": pick.alike,
    }


def photo_values(session: Session, number: int) -> dict[str, Any]:
    """Describe one photo: its name, what was said of it, what the head makes of it, and whether it is a check."""
    photo = session.photos.photos[number]
    mark = session.labels.mark(photo.id)
    knowledge = session.knowledge
    guess: list[list[Any]] = []
    given: list[str] = []
    suggestible = is_known(session, number) and not session.waits_as_check(np.array([number]))[0]
    if knowledge.head is not None and knowledge.probabilities is not None and suggestible:
        shares = knowledge.probabilities[number]
        guess = [
            [knowledge.head.classes[k], round(float(shares[k]), 3)]
            for k in np.argsort(-shares, kind="stable")[:_GUESSES].tolist()
        ]
        if knowledge.given is not None:
            given = [knowledge.head.classes[k] for k in np.flatnonzero(knowledge.given[number]).tolist()]
    return {
        "id": photo.name,
        "name": session.photos.title(number),
        "guess": guess,
        "given": given,
        "check": bool((session.candidates == number).any()),
        "labels": session.labels_of(number),
        "kind": mark.kind if mark else "",
        "seen": mark.number if mark else 0,
    }


def is_known(session: Session, number: int) -> bool:
    """Tell whether the head has seen a photo's bottleneck."""
    known = session.knowledge.known
    return known is not None and number < len(known) and bool(known[number])


def conflicts(session: Session) -> list[int]:
    """List the photos of which people contradict each other."""
    number_of = session.photos.number_of
    return [number_of[photo] for photo in session.labels.conflicting if photo in number_of]


def list_photos(session: Session, query: Mapping[str, str]) -> dict[str, Any]:
    """List photos for the grid.

    Args:
        session: the session.
        query: `view`, one of suggested, labelled, none, skipped, alike, mistakes, conflicts, some; with `class`, the
            name of one, or `to`, the name of a photo; `ids`, names with commas between; `least`, a probability; `from`
            and `count`.

    Returns:
        The photos, and how many there are in all.

    Raises:
        LabellingError: the query cannot be read.
    """
    start, count = _whole(query, "from", 0), min(_whole(query, "count", 48), MOST_LISTED)
    view = query.get("view", "")
    notes: dict[int, list[str]] = {}
    if view == "suggested":
        numbers = _suggested(session, query)
    elif view == "labelled":
        numbers = np.flatnonzero(session.marks[:, _class(session, query)]).tolist()
    elif view in ("none", "skipped"):
        numbers = session.marked("none" if view == "none" else "skip")
    elif view == "alike":
        rows, have = session.rows()
        row = photo_number(session, query.get("to", ""))
        free = have & ~session.answered & ~session.waits_as_check(np.arange(len(have)))
        found = alike_rows(rows, row, free, MOST_LISTED) if have[row] else []
        numbers = [number for number, _ in found]
    elif view == "mistakes":
        mistakes = session.figures.mistakes
        numbers = [mistake.row for mistake in mistakes]
        notes = {m.row: [session.figures.classes[k] for k in m.suggested] for m in mistakes}
    elif view == "conflicts":
        numbers = conflicts(session)
    elif view == "some":
        numbers = [photo_number(session, name) for name in query.get("ids", "").split(",")[:MOST_LISTED]]
    else:
        raise LabellingError(
            f"There is no view {view[:40]!r}; there are suggested, labelled, none, skipped, alike, mistakes, conflicts "
            "and some"
        )
    photos = []
    for number in numbers[start : start + count]:
        values = photo_values(session, number)
        if number in notes:
            values["suggested"] = notes[number]
        if view == "conflicts":
            marks = session.labels.conflict(session.photos.photos[number].id)
            values["said"] = [{"kind": mark.kind, "names": mark.names} for mark in marks]
        photos.append(values)
    return {"photos": photos, "total": len(numbers)}


def _suggested(session: Session, query: Mapping[str, str]) -> list[int]:
    """List the photos without an answer for which the head suggests a label, the surest first."""
    knowledge = session.knowledge
    if knowledge.head is None or knowledge.probabilities is None or knowledge.given is None or knowledge.known is None:
        return []
    try:
        least = float(query.get("least", "0"))
    except ValueError:
        raise LabellingError(f"'least' must be a probability; got {query['least'][:40]!r}") from None
    name = query.get("class", "")
    if name not in knowledge.head.classes:
        return []
    number = knowledge.head.classes.index(name)
    own = knowledge.probabilities[:, number]
    rows = np.flatnonzero(_suggestible(session) & knowledge.given[:, number] & (own >= least))
    found: list[int] = rows[np.argsort(-own[rows], kind="stable")].tolist()
    return found


def _class(session: Session, query: Mapping[str, str]) -> int:
    name = query.get("class", "")
    if name not in session.labels.classes:
        raise LabellingError(f"There is no class {name[:80]!r}")
    return session.labels.classes.index(name)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise LabellingError(f"'{name}' must be a whole number; got {text[:40]!r}")
    return int(text)


def map_of(session: Session) -> dict[str, Any]:
    """Give all photos with their places, as numbers of 16 bits in base64: places, labels and what the head guesses.

    Labels and guesses are places in the list of classes that the state has, -1 for none, -2 for photos that are not
    shown since they have no place yet, have another answer, or wait for theirs as a check; guesses come with their
    probability in percent. Of several labels of a photo, it is the one that the fewest photos have.
    """
    places, knowledge = session.places, session.knowledge
    if places is None:
        return {"n": 0}
    n = len(places)
    have = session.rows()[1][:n]
    guess, sure = np.full(n, -1, np.int16), np.zeros(n, np.int16)
    classes = session.classes()
    if knowledge.head is not None and knowledge.probabilities is not None and knowledge.given is not None:
        m = min(n, len(knowledge.given))
        index = {name: place for place, (_, name, _) in enumerate(classes)}
        numbers = np.array([index.get(name, -1) for name in knowledge.head.classes], np.int16)
        best = np.where(knowledge.given[:m], knowledge.probabilities[:m], -1).argmax(axis=1)
        guess[:m] = np.where(knowledge.given[:m].any(axis=1), numbers[best], -1)
        sure[:m] = np.round(100 * knowledge.probabilities[:m][np.arange(m), best])
    marks = session.marks[:n][:, [k for k, _, _ in classes]]
    label = np.full(n, -1, np.int16)
    if classes:
        order = np.argsort([labels for _, _, labels in classes], kind="stable")  # the rarest comes first
        label = np.where(marks.any(axis=1), order[marks[:, order].argmax(axis=1)], -1).astype(np.int16)
    apart = (session.answered[:n] & (label < 0)) | session.waits_as_check(np.arange(n))
    return {
        "n": n,
        "x": _packed(np.round(places[:, 0] * 65535).astype(np.uint16)),
        "y": _packed(np.round(places[:, 1] * 65535).astype(np.uint16)),
        "label": _packed(np.where(have & ~apart, label, -2).astype(np.int16)),
        "guess": _packed(guess),
        "sure": _packed(sure),
        "ids": "".join(photo.name for photo in session.photos.photos[:n]),
    }


def _packed(values: NDArray[np.generic]) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()
