"""The threads behind a session: they bring bottlenecks, refit the head, judge it, and survey all photos.

- Extraction brings bottlenecks, of the photos that are being shown first, at a low priority.
- The teacher refits the head to the labels as they stand, predicts all photos and picks what to ask next. While it
  works, labels gather, and the next refit takes them all at once: what nobody would see any more is never computed.
- The examiner judges: cross-validation, probable mistakes, forecasts.
- The survey, once all bottlenecks are there: thumbnails of all photos, the map, pictures that are there twice.
- The writer brings the manifest up to date, at most twice a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from quickstudy.bottlenecks.extraction import extract, source_spec
from quickstudy.errors import QuickstudyError
from quickstudy.labelling.choosing import Pick, doubtful_rows, typical_rows, with_checks
from quickstudy.labelling.knowledge import Figures, Knowledge
from quickstudy.labelling.session import Session
from quickstudy.labelling.teacher import (
    GUESSED,
    LiveHead,
    Space,
    choose_answer,
    cross_validate,
    find_mistakes,
    find_space,
    fit_live,
    forecast,
    judge_checks,
)
from quickstudy.learning.answers import MOST_PROBABLE, Answer, Thresholds
from quickstudy.learning.features import Floats, signed_sqrt
from quickstudy.learning.scores import Scores
from quickstudy.process import give_way

_PICKS = 24
_MANIFEST_SECONDS = 0.5
_FEWEST_FOR_SPACE = 24
_GROWTH = 1.5  # times as many bottlenecks as the directions were found from, and they are found anew
_PUBLISHED_SECONDS = 1.0  # between two looks at bottlenecks that came while no label did
_FORECAST_EVERY = 1.15  # times as many labels as at the last forecast
_LOOKED_AT = 64  # thumbnails made at a time
_MOST_FOR_DUPLICATES = 50_000
_END_SECONDS = 5.0


class Background:
    """Runs the threads of a session from `start` to `close`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._closing = False
        self._spanned = 0  # bottlenecks from which the directions were found
        self._starting: list[Pick] = []
        self._learned = threading.Condition(session.lock)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Set the threads going."""
        for work in (self._extract, self._write_manifests, self._teach, self._examine, self._survey):
            self._threads.append(threading.Thread(target=work, name=work.__name__, daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Let the threads end, and write the manifest."""
        with self._session.lock:
            self._closing = True
            self._session.changed.notify_all()
            self._learned.notify_all()
        for thread in self._threads[:2]:  # those that write; the others only read, and may be in the middle of a step
            thread.join(_END_SECONDS)
        self._session.close()

    # Extraction
    def _extract(self) -> None:
        session = self._session
        give_way()
        try:
            source = session.store.source(source_spec(session.net, "float16", session.runner))
            kept = [photo.digest for photo in session.photos.photos if photo.digest in source]
            for start in range(0, len(kept), 4096):
                some = kept[start : start + 4096]
                session.arrive(some, source.gather(some, session.net.cut_shape[0]))
            missing = np.flatnonzero(~session.have).tolist()
            photos = [session.photos.photos[number] for number in missing]
            if photos and not self._closing:
                found = extract(
                    [photo.path for photo in photos],
                    session.net,
                    session.store,
                    digests=[photo.digest for photo in photos],
                    engine=session.runner,
                    order=self._order(missing),
                    kept=session.arrive,
                    background=True,
                )
                for place, reason in found.reasons.items():
                    session.set_unusable(missing[place], reason)
        except QuickstudyError as error:
            session.trouble = str(error)
        session.extracted = True
        with session.lock:
            session.changed.notify_all()
            self._learned.notify_all()
        session.tell()

    def _order(self, missing: list[int]) -> Iterator[int]:
        """Yield places in `missing`: of what is being shown first, then in the order of the content hashes."""
        session = self._session
        place_of = {number: place for place, number in enumerate(missing)}
        left = iter(missing)
        taken: set[int] = set()
        while not self._closing:
            with session.lock:
                number = session.urgent.popleft() if session.urgent else next(left, None)
            if number is None:
                return
            if number not in taken and number in place_of:
                taken.add(number)
                yield place_of[number]

    def _span(self) -> None:
        """Find the directions anew, where many more photos are known than they were found from."""
        session = self._session
        with session.lock:
            count = int(session.have.sum())
            complete = session.extracted and count > self._spanned
            if count < 2 or not (complete or count >= max(_FEWEST_FOR_SPACE, _GROWTH * self._spanned)):
                return
            known = np.flatnonzero(session.have)
            raw = session.raw
        space = find_space(raw[known])
        if space is None:
            return
        rows = np.zeros((len(raw), space.axes.shape[1]), np.float32)
        for start in range(0, len(known), 4096):
            some = known[start : start + 4096]
            rows[some] = space.project(raw[some])
        with session.lock:
            late = np.setdiff1d(np.flatnonzero(session.have), known)
            if len(session.have) > len(rows):
                rows = np.concatenate([rows, np.zeros((len(session.have) - len(rows), rows.shape[1]), np.float32)])
            rows[late] = space.project(session.raw[late]) if len(late) else rows[late]
            session.space, session.projected, self._spanned = space, rows, count
            known = np.flatnonzero(session.have)
        self._starting = [
            Pick(row=int(known[pick.row]), reason=pick.reason, alike=pick.alike) for pick in typical_rows(rows[known])
        ]

    # The teacher
    def _teach(self) -> None:
        session = self._session
        seen: tuple[int, int, Space | None, int] = (-1, -1, None, -1)

        def is_behind() -> bool:
            return self._closing or self._state() != seen

        while True:
            with session.lock:
                session.changed.wait_for(is_behind)
                if self._closing:
                    return
                before, seen = seen, self._state()
            self._span()
            session.knowledge = self._learn(session.knowledge)
            with session.lock:
                self._learned.notify_all()
            session.tell()
            if before[0] == seen[0] and not session.extracted:  # only bottlenecks came, which need no haste
                with session.lock:
                    session.changed.wait_for(
                        lambda: self._closing or session.labels.number != session.knowledge.number, _PUBLISHED_SECONDS
                    )

    def _state(self) -> tuple[int, int, Space | None, int]:
        """Name what the teacher's knowledge follows from."""
        session = self._session
        return session.labels.number, int(session.have.sum()), session.space, len(session.unusable)

    def _learn(self, before: Knowledge) -> Knowledge:
        """Refit the head to the labels as they stand, predict all photos, and pick what to ask next."""
        session = self._session
        with session.lock:
            number, space, rows, have = session.labels.number, session.space, session.projected, session.have.copy()
            learned, control = session.training_rows()
            learned = learned[have[learned]]
            counts = session.marks[learned].sum(axis=0)
            names, known = list(session.labels.classes), session.told_apart(counts, len(learned))
            targets, counts = session.targets(learned, known), counts[known]
            free = session.free()
            waiting = np.flatnonzero(have & ~session.answered)
            waiting = waiting[:GUESSED]  # they come in the order of their hashes, so these are drawn at random
            answered = int(session.answered.sum())
            unlike, doubtful = session.asked["unlike"], session.asked["unlike"] + session.asked["doubtful"]
        clock = _Clock()
        head, probabilities, given = None, None, None
        answer: Answer = MOST_PROBABLE
        if space is not None and len(known):
            classes = tuple(names[k] for k in known)
            head = before.head
            if head is None or head.space is not space or before.number != number or before.labels != len(learned):
                clock.start()
                head = fit_live(rows[learned], targets, classes, space, before.head, rows[waiting])
                clock.note("fit")
            else:
                clock.milliseconds |= before.milliseconds
                clock.start()
            judged = session.figures.judged
            probabilities = head.probabilities(rows, judged.temperature if judged is not None else 1.0)
            answer = _answer_of(head, session.figures)
            given = answer.given(probabilities)
            clock.note("suggest")
        candidates = session.candidates[free[session.candidates]]
        others = free.copy()
        others[session.waits_as_check(np.arange(len(others)))] = False
        rest = others & have
        starting = [pick for pick in self._starting if rest[pick.row]]
        if head is None or probabilities is None or (starting and len(learned) < len(self._starting)):
            chosen = starting or [Pick(row=n, reason="any") for n in np.flatnonzero(rest)[:_PICKS].tolist()]
        else:
            chosen = doubtful_rows(
                rows,
                probabilities,
                rest,
                learned,
                counts,
                head.classes,
                _PICKS,
                thresholds=answer.values if isinstance(answer, Thresholds) else (),
                unlike=unlike,
                answered=doubtful,
            )
        picks: list[Pick] = []
        if chosen or not others.any():  # else the session picks some that nothing is known of yet
            picks = with_checks(chosen, candidates.tolist(), asked=len(control), answered=answered, most=_PICKS)
        clock.note("choose")
        return Knowledge(
            number=number,
            head=head,
            waiting=waiting,
            probabilities=probabilities,
            given=given,
            known=have,
            picks=tuple(picks),
            labels=len(learned),
            milliseconds=clock.milliseconds,
        )

    # The examiner
    def _examine(self) -> None:
        session = self._session
        give_way()
        seen: tuple[int, LiveHead | None] = (-1, None)

        def is_behind() -> bool:
            return self._closing or (session.knowledge.number, session.knowledge.head) != seen

        while True:
            with session.lock:
                self._learned.wait_for(is_behind)
                if self._closing:
                    return
                knowledge = session.knowledge
                seen = knowledge.number, knowledge.head
            session.figures = self._judge(knowledge, session.figures)
            session.tell()

    def _judge(self, knowledge: Knowledge, before: Figures) -> Figures:
        """Judge the labels that a head was fitted to."""
        session = self._session
        head = knowledge.head
        with session.lock:
            if head is None or head.space is not session.space:
                return before if head is not None else Figures(number=knowledge.number)
            rows, raw, names = session.projected, session.raw, session.labels.classes
            known = [names.index(name) for name in head.classes]
            learned, control = (numbers[session.have[numbers]] for numbers in session.training_rows())
            targets = session.targets(learned, known)
            if targets.ndim == 1:  # what has been said of a new class since is for the next fit
                learned, targets = learned[targets >= 0], targets[targets >= 0]
            if not session.photos.splits_given:
                control = control[np.isin(control, learned)]
            said = [session.labels_of(number) or () for number in (*learned.tolist(), *control.tolist())]
            counts = session.marks[learned].sum(axis=0)
        if session.told_apart(counts, len(learned)) != known:
            return before  # a class has lost its last label since; another head is on its way
        keys = [session.photos.photos[n].digest for n in learned.tolist()]
        waiting = rows[knowledge.waiting]
        judged = cross_validate(rows[learned], targets, keys, head, waiting)
        temperature = judged.temperature if judged is not None else 1.0
        if session.photos.splits_given:
            checks = np.zeros(0, np.intp)
            shares = head.probabilities(rows[control], temperature)
        else:
            checks = np.searchsorted(learned, control)
            shares = judge_checks(rows[learned], targets, checks, head, temperature, waiting)
        answer = choose_answer(judged, len(known), checks)

        def score(probabilities: Floats, labels: list[tuple[str, ...]]) -> Scores | None:
            return answer.score(probabilities, labels, head.classes) if labels else None

        gains, gains_at = before.gains, before.gains_at
        if (
            judged is not None
            and targets.ndim == 1
            and not gains_at / _FORECAST_EVERY < len(learned) < gains_at * _FORECAST_EVERY
        ):
            gains, gains_at = forecast(raw[learned], targets, keys, head.classes, judged), len(learned)
        mistakes = find_mistakes(judged) if judged is not None else []
        return Figures(
            number=knowledge.number,
            judged=judged,
            classes=head.classes,
            answer=answer,
            cross=score(judged.probabilities, [said[k] for k in judged.held_out.tolist()]) if judged else None,
            control=score(shares, said[len(learned) :]),
            mistakes=tuple(
                replace(mistake, row=row)
                for mistake in mistakes
                if not session.is_confirmed(row := int(learned[mistake.row]))
            ),
            gains=gains,
            gains_at=gains_at,
        )

    # The survey: thumbnails of all photos, pictures that are the same, and the map
    def _survey(self) -> None:
        from quickstudy.reports.duplicates import near_duplicates
        from quickstudy.reports.neighbours import place_images

        session = self._session
        give_way()
        with session.lock:
            self._learned.wait_for(lambda: self._closing or (session.extracted and session.space is not None))
        n = len(session.photos)
        for start in range(0, n, _LOOKED_AT):
            if self._closing:
                return
            session.photos.keep_thumbnails(range(start, min(start + _LOOKED_AT, n)))
        session.photos.keep_thumbnails()
        known = np.flatnonzero(session.have)
        if self._closing or len(known) < 2:
            return
        places = np.full((len(session.have), 2), 0.5)
        places[known] = place_images(session.projected[known])
        with session.lock:
            session.places = places
        session.tell()
        if len(known) > _MOST_FOR_DUPLICATES or self._closing:
            return
        pairs = near_duplicates(signed_sqrt(session.raw[known]), session.photos.thumbnails(known.tolist()))
        with session.lock:
            group = session.group.copy()
            for first, second in known[pairs].tolist():
                low, high = sorted((int(group[first]), int(group[second])))
                group[group == high] = low
            session.group = group
            session.changed.notify_all()
        session.tell()

    def _write_manifests(self) -> None:
        session = self._session
        while True:
            with session.lock:
                session.changed.wait_for(lambda: self._closing or session.dirty)
                if self._closing:
                    return
            try:
                session.write_manifest()
            except (OSError, QuickstudyError) as error:
                session.trouble = f"The manifest cannot be written: {error}"
                session.tell()
            time.sleep(_MANIFEST_SECONDS)


def _answer_of(head: LiveHead, figures: Figures) -> Answer:
    """Say what a head's probabilities are answered by: the thresholds that were chosen last, or one half for others."""
    if head.link.kind == "one":
        return MOST_PROBABLE
    answer = figures.answer
    chosen = dict(zip(figures.classes, answer.values, strict=True)) if isinstance(answer, Thresholds) else {}
    return Thresholds(values=tuple(chosen.get(name, 0.5) for name in head.classes), precision=None, n=len(chosen))


class _Clock:
    """Notes how long steps take, in milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self._last = time.perf_counter()

    def note(self, name: str) -> None:
        now = time.perf_counter()
        self.milliseconds[name] = round(1000 * (now - self._last), 1)
        self._last = now
