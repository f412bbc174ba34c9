"""Logistic regression fitted to its optimum, several training sets at once: softmax regression, or one fit a label.

The objective of one training set is  sum_i w_i CE(softmax(x_i W + b), y_i) + (l2 / 2) |W|^2  with weights w that sum
to 1 and an unpenalised bias; for several labels an image, each label has a cross entropy, and so an objective, of its
own (`links.py` has what differs). Minimised over b, it is strongly convex in W with modulus l2, so there is one
optimum, and where b is at its best for W, the loss is no further above it than |gradient|^2 / (2 l2) (Boyd and
Vandenberghe, Convex Optimization, 9.1.2).

What is asked for is not a loss, however, but probabilities, of held-out rows too: with a weak penalty, a training loss
within 0.001 nats of its optimum leaves them undetermined. "Converged" to a precision e therefore means both of these:
- The last full step of Newton's method changed the probabilities of all rows, held-out ones among them, by at most 3 e
  as root mean square. A step leaves a fourth or less of the error that there was, so what is left is below e. That is
  no proof; tests/learning/test_optimum.py compares fits with long runs of other programs.
- The loss is proven, by the bound above, to be within e / 100 nats of its optimum.

Method: Newton's, each step solved by conjugate gradients (Nocedal and Wright, Numerical Optimization, 2nd ed.,
algorithm 7.1) until its error, as the preconditioner measures it, is a fourth of what it was. An iteration costs two
products with the features. The preconditioner is the Hessian's block of each class in the 128 directions in which the
rows vary most (256 of very many rows), and one number in all others. One second moment of all rows for all
classes, as this once had, takes twice as many iterations: a class's curvature lies in the few images that might be it.
On the clothing photos the strengths 0.32 to 0.01 take 103 iterations to held-out probabilities within 0.001; L-BFGS
with the second moment of all rows took 90 to 0.001 nats of training loss, which left them undetermined, and 221 to the
same precision.

The logits are linear in the weights, so those of a step add up as it is solved, and the line search costs one product
more. A fit that has no start gets one from a rough fit in the main directions alone, a tenth of the work, which takes
half of the iterations from it: 9 instead of 22 on the clothing photos. All folds of a cross-validation share the
products: their weights stand one below the other, and blocks of rows leave out the folds that they do not train. The
blocks are shared between threads, each of which uses one of BLAS's. A fit in float32 that
comes to the end of its digits goes on in float64; a small one is in float64 from the start, and goes to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError
from quickstudy.learning.blocks import RowBlock, add_products, cut_into_blocks, logits_of_rows, sums_of
from quickstudy.learning.features import (
    LEAST_SAMPLE,
    MOST_PARTS,
    WORTH_THREADS,
    Features,
    Real,
    blas_threads,
    in_threads,
    sample_of,
)
from quickstudy.learning.links import link_of
from quickstudy.learning.preconditioner import Preconditioner, precondition

_T = TypeVar("_T")

_LAST_STEP = 3  # times the precision: what the last step may change
_WEAK = 1e-3  # penalty below which rows are so sure that the same change of probabilities changes their log loss more
_WEAKEST_IN_SINGLE = 2e-6  # penalty below which float32 leaves probabilities a thousandth from the optimum's
_GAP_SHARE = 0.01  # nats of loss that may be left, a unit of precision
_FORCING = 0.25  # how far conjugate gradients reduce the error within a step
_FAR = 0.04  # nats, squared length of the gradient as the preconditioner measures it: twice what a step may gain
_FAR_FORCING = 0.6
_MOST_STEPS = 200
_MOST_ITERATIONS = 1000  # within one step
_MOST_BIAS_STEPS = 50
_LEAST_SHARE = 1e-9  # of a step; less is none
# In float32: so many steps without the gradient falling by half, or the objective noticeably, have used up its digits.
_STUCK_STEPS = 5
_NOTICEABLE = 1e-4  # of the objective
_ITERATIONS_FOR_A_PRECONDITIONER = 12  # a new one costs about so many
_SMALL = 20_000_000  # rows × features × columns, up to which float64 and a high precision cost next to nothing
_SMALL_PRECISION = 1e-6
_ROUGH_PRECISION = 0.03
_SAMPLE_PER_CLASS = 256
_VALUES_OF_PARTS = 1 << 25
_ROUNDED = 1e-7  # excess of a class's mean probability that float32 may leave


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimum:
    """Optima for F training sets."""

    weights: Real
    """Weights for prepared features, F×d×K."""
    biases: Real
    """Biases for prepared features, F×K."""
    iterations: int
    """Number of iterations of conjugate gradients, over all steps."""
    change: float
    """Root mean square over the rows, held-out ones among them, by which the last step changed the probabilities, in
    the worst training set; infinite where a training set did not take a full step."""
    gap: float
    """Bound on how far the loss of the worst training set is above its optimum, in nats."""
    features: Features
    """The rows to which the fits belong."""

    @cached_property
    def logits(self) -> Real:
        """Logits of all rows, held-out ones among them, n×F×K."""
        return np.stack([self.logits_of(slice(None), number) for number in range(len(self.biases))], axis=1)

    def logits_of(self, rows: NDArray[np.intp] | slice, number: int) -> Real:
        """Work out the logits (m×K) of some rows by the fit to one training set."""
        return self.features.logits(rows, self.weights[number], self.biases[number])


def fit_softmax(
    features: Features,
    labels: NDArray[np.intp],
    sample_weights: Real,
    *,
    classes: int,
    l2: float,
    precision: float,
    start: tuple[Real, Real] | None = None,
    rough: bool = False,
) -> Optimum:
    """Fit one regression to each column of `sample_weights`, to the optimum.

    Args:
        features: n prepared feature rows.
        labels: n class numbers, 0 to `classes` - 1, or marks, n×K, 1 where the image has the label.
        sample_weights: n×F, one column a training set, each summing to 1; 0 leaves a row out.
        classes: number of classes K.
        l2: strength of the penalty, per unit of mean loss and of prepared feature.
        precision: largest root mean square by which the rows' probabilities, held-out rows' among them, may differ
            from those at the optimum; small problems go to 1e-6 at any rate. See the module for what is proven of it.
        start: weights and biases to start from, shaped as in `Optimum` (a neighbour on the regularisation path).
        rough: stop at `precision` where the problem is small, too.

    Raises:
        HeadError: no optimum was reached, in float64 and from zero weights either: the strength is too weak for these
            features.
    """
    n, sets = sample_weights.shape
    width = features.width
    begin = np.zeros((sets, classes, width))
    small = n * width * sets * classes <= _SMALL
    if start is None and not small and (few := features.in_main_directions) is not None:
        near = fit_softmax(few, labels, sample_weights, classes=classes, l2=l2, precision=_ROUGH_PRECISION)
        main = features.main_directions[:-1, :-1]
        start = main @ near.weights, near.biases
    if start is not None:
        begin[:, :, :-1], begin[:, :, -1] = np.moveaxis(start[0], 1, 2), start[1]
    parameters: Real = begin.reshape(sets * classes, width)
    iterations = 0
    precision = min(precision, _SMALL_PRECISION) if small and not rough else precision * min(1, l2 / _WEAK) ** 0.5
    with blas_threads(not small and n * width * sets * classes >= WORTH_THREADS) as threads:
        for dtype, warm in ((np.float32, 1), (np.float64, 1), (np.float64, 0))[int(small or l2 < _WEAKEST_IN_SINGLE) :]:
            problem = _Problem(features, labels, sample_weights, classes, l2, precision, dtype, threads)
            state, spent, converged = problem.minimise((parameters * warm).astype(dtype))
            iterations += spent
            if converged:
                break
            parameters = state.parameters
        else:
            raise HeadError(
                f"The head has not reached its optimum at regularisation {l2:g}: its loss may be {state.gap:.0e} nats "
                "above it, so nothing was written. Take a stronger regularisation, or leave the choice to "
                "cross-validation"
            )
    shaped = state.parameters.reshape(sets, classes, width)
    return Optimum(
        weights=np.moveaxis(shaped[:, :, :-1], 2, 1),
        biases=shaped[:, :, -1],
        iterations=iterations,
        change=state.change,
        gap=state.gap,
        features=features,
    )


@dataclass(kw_only=True)
class _State:
    """The point that a minimisation has come to."""

    parameters: Real
    """Weights and, last, biases, FK×(d+1)."""
    logits: list[Real]
    """Logits of each block's rows, of the sets that they train, sets×K×rows."""
    probabilities: list[tuple[Real, Real]]
    """Probabilities of each block's rows: of the sets that they train, and of those that they are held out of."""
    loss: NDArray[np.float64]
    """Weighted mean of the rows' losses of each unit (F, or FK where labels stand alone), in nats."""
    gradient: Real
    """The objective's gradient, FK×(d+1)."""
    change: float = np.inf
    """Root mean square by which the step that led here changed the probabilities; see `Optimum`."""
    gap: float = np.inf
    """Bound on how far the loss is above its optimum, in nats; infinite until the biases are settled."""


class _Problem:
    """The objective of all training sets, in one precision of numbers."""

    def __init__(
        self,
        features: Features,
        labels: NDArray[np.intp],
        sample_weights: Real,
        classes: int,
        l2: float,
        precision: float,
        dtype: type[np.floating],
        threads: int,
    ) -> None:
        self.link = link_of(labels)
        self.units = sample_weights.shape[1] * self.link.units(classes)
        self.features = features.of_type(dtype)
        self.sets, self.classes, self.dtype, self.threads = sample_weights.shape[1], classes, dtype, threads
        # To the last digit of float64, since what sums to 1 in float32 does not in float64.
        weights = sample_weights.astype(np.float64)
        weights = (weights / weights.sum(axis=0)).T
        self.wanted = self.link.wanted(labels, weights, classes)
        self.l2 = float(dtype(l2))
        n = len(labels)
        sampled = sample_of(n, max(LEAST_SAMPLE, _SAMPLE_PER_CLASS * classes))
        by_set = np.ascontiguousarray(weights.astype(dtype))
        self.blocks = cut_into_blocks(labels, by_set, classes, features.width, sampled, features.triangular)
        parts = min(MOST_PARTS, max(_VALUES_OF_PARTS // (self.sets * classes * features.width), 2))
        size = -(-len(self.blocks) // parts)
        self.parts = [list(range(i, min(i + size, len(self.blocks)))) for i in range(0, len(self.blocks), size)]
        self.sample_share = len(sampled) / n
        self.main = features.main_directions.astype(dtype, copy=False)
        self.sketch = features.sketch(len(sampled))
        self.most_change = _LAST_STEP * precision
        self.most_gap = _GAP_SHARE * precision
        self.longest_gradient = float(np.sqrt(2 * l2 * self.most_gap))

    def minimise(self, parameters: Real) -> tuple[_State, int, bool]:
        """Run Newton's method from `parameters` on: where it ends, its iterations, and whether it has converged."""
        state = self.begin(parameters)
        preconditioner, used = self.preconditioner(state), 0
        shortest, lowest, stuck, iterations = np.inf, np.inf, 0, 0
        for _ in range(_MOST_STEPS):
            step, change, spent = self.newton_step(state, preconditioner)
            state = self.search(state, step, change)
            iterations, used = iterations + spent, used + spent
            length = self.longest(state.gradient)
            if state.change <= self.most_change and length <= self.longest_gradient:
                state = self.settled(state)
                if state.gap <= self.most_gap:
                    return state, iterations, True
            objective = float(self.objective(state).sum())
            stuck = 0 if length < shortest / 2 or objective < lowest * (1 - _NOTICEABLE) else stuck + 1
            shortest, lowest = min(shortest, length), min(lowest, objective)
            if stuck >= _STUCK_STEPS and self.dtype == np.float32:
                break
            if used > _ITERATIONS_FOR_A_PRECONDITIONER:
                preconditioner, used = self.preconditioner(state), 0
        return self.settled(state), iterations, False

    def begin(self, parameters: Real) -> _State:
        """Choose the state to start from: `parameters`, but zero for training sets where they are worse than nothing.

        Far from the optimum probabilities are 0 and 1, where the loss has no curvature for a step to go by.
        """
        # The same added to all classes changes no probability, and less of it means a smaller penalty.
        by_class = self.link.centred(parameters.reshape(self.sets, self.classes, -1).copy())
        parameters = by_class.reshape(parameters.shape)
        state = self.state(parameters)
        nothing = self.link.loss_of_nothing(self.classes)
        good = self.objective(state) <= nothing * (1 + 1e-6)  # zero itself, up to rounding
        if good.all():
            return state
        return self.state(np.where(self.spread(good) > 0, parameters, self.dtype(0)))

    def state(self, parameters: Real, before: _State | None = None, logits: list[Real] | None = None) -> _State:
        """Work out the state of these parameters, and how far its probabilities are from those of another.

        Where the logits of the rows that train are known, one product of two is saved.
        """
        known: list[Real] = [parameters] * len(self.blocks) if logits is None else logits
        probabilities: list[tuple[Real, Real]] = [(parameters, parameters)] * len(self.blocks)
        by_set = self.features.for_kept(parameters).reshape(self.sets, self.classes, -1)

        def part(numbers: list[int]) -> tuple[Real, NDArray[np.float64], NDArray[np.float64]]:
            gradient = np.zeros_like(by_set)
            losses, squares = np.zeros((self.sets, self.units // self.sets)), np.zeros(self.sets)
            for number in numbers:
                block = self.blocks[number]
                x, trained = self.rows(block), block.training
                if logits is None:
                    known[number] = self.product(by_set, trained, block, x)
                z, p, more = known[number], *self.link.given(known[number])
                held_out, _ = self.link.given(self.product(by_set, block.held_out, block, x))
                probabilities[number] = p, held_out
                if before is not None:
                    for sets, mine, old in zip(
                        (trained, block.held_out), (p, held_out), before.probabilities[number], strict=True
                    ):
                        squares[sets] += np.square(mine - old).sum(axis=(1, 2), dtype=np.float64)
                if len(trained):
                    losses[trained] += self.link.losses(z, more, block.labels, block.weights)
                    residual = self.link.residual(p, more, block.labels, block.weights)
                    add_products(gradient[:, :, block.columns], trained, residual, x)
            return gradient, losses, squares

        total, loss, squares = sums_of(self.run(part))
        gradient = self.features.of_kept(total.reshape(parameters.shape))
        gradient[:, :-1] += self.dtype(self.l2) * parameters[:, :-1]
        state = _State(
            parameters=parameters,
            logits=known,
            probabilities=probabilities,
            loss=loss.reshape(-1),
            gradient=gradient,
        )
        if before is not None:
            state.change = float(np.sqrt(squares.max() / len(self.features)))
        return state

    def preconditioner(self, state: _State) -> Preconditioner:
        """Make the preconditioner for Hessians at this state, on average over the training sets."""
        curvatures = np.empty((self.classes, len(self.sketch.squares_outside)), self.dtype)
        ends = np.cumsum([len(block.sample) for block in self.blocks])

        def gather(numbers: list[int]) -> None:
            for number in numbers:
                block = self.blocks[number]
                end = ends[number]
                p = state.probabilities[number][0]
                weights = block.weights / self.dtype(self.sets * self.sample_share)
                if len(block.sample) < len(block.labels):
                    p, weights = p[:, :, block.sample], weights[:, block.sample]
                curvatures[:, end - len(block.sample) : end] = (p * (1 - p) * weights[:, None]).sum(axis=0)

        self.run(gather)
        return precondition(
            curvatures,
            self.sketch,
            self.main,
            l2=self.l2,
            width=self.features.width,
            link=self.link,
            threads=self.threads,
        )

    def rows(self, block: RowBlock) -> Real:
        """Give a block's rows as they are kept, without the features that are all zero."""
        return self.features.as_kept(block.rows, self.dtype)[:, block.columns]

    def product(self, by_set: Real, sets: NDArray[np.intp], block: RowBlock, x: Real) -> Real:
        """Multiply some sets' parameters, turned for rows as they are kept, with a block's rows `x` (sets×K×rows)."""
        chosen = (by_set if len(sets) == self.sets else by_set[sets]).reshape(-1, by_set.shape[2])[:, block.columns]
        return logits_of_rows(chosen, x).reshape(len(sets), self.classes, len(block.labels))

    def curved(self, state: _State, direction: Real) -> tuple[Real, list[Real]]:
        """Multiply a direction (FK×(d+1)) by the Hessian at this state; return what it adds to the logits, too."""
        by_set = self.features.for_kept(direction).reshape(self.sets, self.classes, -1)
        added: list[Real] = [direction] * len(self.blocks)

        def part(numbers: list[int]) -> tuple[Real]:
            total = np.zeros_like(by_set)
            for number in numbers:
                block = self.blocks[number]
                x, p = self.rows(block), state.probabilities[number][0]
                added[number] = moved = self.product(by_set, block.training, block, x)
                if not len(block.training):
                    continue
                bent = self.link.bend(moved, p)
                bent *= block.weights[:, None]
                add_products(total[:, :, block.columns], block.training, bent, x)
            return (total,)

        [curved] = sums_of(self.run(part))
        curved = self.features.of_kept(curved.reshape(direction.shape))
        curved[:, :-1] += self.dtype(self.l2) * direction[:, :-1]
        return curved, added

    def shifted(self, logits: list[Real], added: list[Real], shares: NDArray[np.floating]) -> list[Real]:
        """Add shares, one a unit, of a change to logits, block by block."""
        factors = shares.astype(self.dtype).reshape(self.sets, -1, 1)

        def part(numbers: list[int]) -> list[Real]:
            return [logits[n] + added[n] * factors[self.blocks[n].training] for n in numbers]

        return [mine for found in self.run(part) for mine in found]

    def newton_step(self, state: _State, preconditioner: Preconditioner) -> tuple[Real, list[Real], int]:
        """Solve Hessian · step = -gradient: the step, what it adds to the logits, iterations of conjugate gradients."""
        step, change = np.zeros_like(state.parameters), [np.zeros_like(mine) for mine in state.logits]
        left = -state.gradient
        upwards = preconditioner.apply(left)
        direction = upwards.copy()
        product = self.dot(left, upwards)
        # Far from the optimum the Hessian soon changes, and a rough step is as good as an exact one.
        goal, iterations = np.where(product > _FAR, _FAR_FORCING, _FORCING) ** 2 * product, 0
        while iterations < _MOST_ITERATIONS and (product > goal).any():
            iterations += 1
            curved, added = self.curved(state, direction)
            curvature = self.dot(direction, curved)
            going = (curvature > 0) & (product > 0)
            if not going.any():
                break
            lengths = np.where(going, product / np.where(going, curvature, 1), 0)
            change, length = self.shifted(change, added, lengths), self.spread(lengths)
            step += direction * length
            curved *= length
            left -= curved
            upwards = preconditioner.apply(left)
            before, product = product, self.dot(left, upwards)
            direction *= self.spread(np.where(going, product / np.where(going, before, 1), 0))
            direction += upwards
        return step, change, iterations

    def search(self, state: _State, step: Real, change: list[Real]) -> _State:
        """Go along `step` up to where the loss falls: for each training set the whole step or a part of it.

        The loss is convex along the step. Where its slope is not positive yet, it is lower than at the start; where the
        slope is positive, the loss must have fallen by a tenth of what the first slope promises (Armijo's rule), up to
        rounding.
        """
        first = self.dot(state.gradient, step)
        pull = self.l2 * self.dot(state.parameters[:, :-1], step[:, :-1])
        bend = self.l2 * self.dot(step[:, :-1], step[:, :-1])
        rounding = 8 * float(np.finfo(self.dtype).eps) * (1 + state.loss)
        share = np.where(first < 0, 1.0, 0.0)
        while True:
            logits = self.shifted(state.logits, change, share)
            reached = self.state(state.parameters + step * self.spread(share), state, logits)
            slope = self.dot(reached.gradient, step)
            rise = reached.loss - state.loss + share * pull + share**2 * bend / 2
            far = (share > 0) & (slope > 0) & (rise > share * first / 10 + rounding)
            if not far.any():
                break
            shorter = np.clip(first / np.where(far, first - slope, 1), 0.1, 0.9)
            share = np.where(far, np.where(share < _LEAST_SHARE, 0, share * shorter), share)
        if not ((share == 1) | (first >= 0)).all():  # at the optimum up to rounding, there is no way down
            reached.change = np.inf
        return reached

    def settled(self, state: _State) -> _State:
        """Bring the biases to their optimum for the weights as they are, on which the gap's bound rests.

        They are found by Newton's method: a shift of the logits multiplies probabilities.
        """
        shifts = np.zeros((self.sets, self.classes))
        last = np.inf
        for _ in range(_MOST_BIAS_STEPS):
            factors = np.exp(shifts).astype(self.dtype)

            def part(numbers: list[int], factors: Real = factors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
                sums, hessians = np.zeros(shifts.shape), np.zeros((*shifts.shape, self.classes))
                for number in numbers:
                    block = self.blocks[number]
                    if not len(block.training):
                        continue
                    p = self.link.shifted(state.probabilities[number][0], factors[block.training][:, :, None])
                    weighted = p * block.weights[:, None]
                    sums[block.training] += weighted.sum(axis=2)
                    hessians[block.training] += self.link.curvature(weighted, p)
                return sums, hessians

            sums, hessians = sums_of(self.run(part))
            excess = sums - self.wanted
            largest = float(np.abs(excess).max())
            if largest < 1e-12 or last / 2 < largest < _ROUNDED:
                break
            last = largest
            for number in range(self.sets):
                # Where equal shifts of all classes change nothing, the Hessian is singular: 1/K fills that in.
                filled = hessians[number] + (1 / self.classes if self.units == self.sets else 0)
                filled[range(self.classes), range(self.classes)] += 1e-14
                shifts[number] -= np.clip(np.linalg.solve(filled, excess[number]), -1, 1)
        parameters = state.parameters.copy()
        parameters[:, -1] += shifts.astype(self.dtype).reshape(-1)
        of_biases = [shifts.astype(self.dtype)[block.training, :, None] for block in self.blocks]
        settled = self.state(parameters, logits=self.shifted(state.logits, of_biases, np.ones(self.units)))
        settled.change = state.change
        settled.gap = self.longest(settled.gradient[:, :-1]) ** 2 / (2 * self.l2)
        return settled

    def run(self, part: Callable[[list[int]], _T]) -> list[_T]:
        """Work through all blocks in parts, in threads; the parts are the same however many threads there are."""
        return in_threads(part, self.parts, self.threads)

    def dot(self, a: Real, b: Real) -> NDArray[np.float64]:
        """Work out the inner products of two arrays of parameters, one a unit."""
        products: NDArray[np.float64] = np.einsum("ij,ij->i", a, b).reshape(self.units, -1).sum(1, dtype=np.float64)
        return products

    def longest(self, gradient: Real) -> float:
        """Measure the longest gradient of a unit."""
        return float(np.sqrt(self.dot(gradient, gradient).max()))

    def objective(self, state: _State) -> NDArray[np.float64]:
        """Work out the objective of each unit, in nats."""
        weights = state.parameters[:, :-1]
        return state.loss + self.l2 / 2 * self.dot(weights, weights)

    def spread(self, by_unit: NDArray[np.generic]) -> Real:
        """Spread one number a unit to a column of one number a row of parameters (FK×1)."""
        column: Real = np.repeat(by_unit, self.sets * self.classes // self.units).astype(self.dtype)[:, None]
        return column
