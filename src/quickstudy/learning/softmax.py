"""Multinomial logistic regression (softmax regression) fitted to its optimum, several training sets at once.

The objective of one training set is  sum_i w_i CE(softmax(x_i W + b), y_i) + (l2 / 2) |W|^2  with weights w that sum
to 1 and an unpenalised bias. Minimised over b, it is strongly convex in W with modulus l2, so there is one optimum, and
where b is at its best for W, the loss is no further above it than |gradient|^2 / (2 l2) (Boyd and Vandenberghe, Convex
Optimization, 9.1.2).

What is asked for is not a loss, however, but probabilities, of held-out rows too: with a weak penalty, a training loss
within 0.001 nats of its optimum leaves them undetermined. "Converged" to a precision e therefore means both of these:
- The last full step of Newton's method changed the probabilities of all rows, held-out ones among them, by at most 3 e
  as root mean square. A step leaves a fourth or less of the error that there was, so what is left is below e. That is
  no proof; tests/learning/test_optimum.py compares fits with long runs of other programs.
- The loss is proven, by the bound above, to be within e / 100 nats of its optimum.

Method: Newton's, each step solved by conjugate gradients (Nocedal and Wright, Numerical Optimization, 2nd ed.,
algorithm 7.1) until its error, as the preconditioner measures it, is a fourth of what it was. An iteration costs two
products with the features. The preconditioner is the Hessian's block of each class in the 128 directions in which the
rows vary most, and one number in all others. One second moment of all rows for all classes, as this once had, takes
twice as many iterations: a class's curvature lies in the few images that might be it. On the clothing photos the
strengths 0.32 to 0.01 take 103 iterations to held-out probabilities within 0.001; L-BFGS with the second moment of all
rows took 90 to 0.001 nats of training loss, which left them undetermined, and 221 to the same precision.

The logits are linear in the weights, so the line search works on logits alone. All folds of a cross-validation share
the products: their weights stand one below the other, and a fold's held-out rows have weight 0. A fit in float32 that
comes to the end of its digits goes on in float64; a small one is in float64 from the start, and goes to 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from quickstudy.errors import HeadError

Floats = NDArray[np.float32]
Real = NDArray[np.floating]

_LAST_STEP = 3  # times the precision: what the last step may change
_GAP_SHARE = 0.01  # nats of loss that may be left, a unit of precision
_FORCING = 0.25  # how far conjugate gradients reduce the error within a step
_MOST_STEPS = 200
_MOST_ITERATIONS = 1000  # within one step
_MOST_BIAS_STEPS = 50
_LEAST_SHARE = 1e-9  # of a step; less is none
_LEAST_CURVATURE = 1e-6  # of a bias, which has no penalty, where all images are told apart
# In float32: so many steps without the gradient falling by half, or the objective noticeably, have used up its digits.
_STUCK_STEPS = 5
_NOTICEABLE = 1e-4  # of the objective
# On the clothing photos 64, 96, 128, 160 and 256 directions take 1.34, 1.18, 1.19, 1.40 and 1.65 s for four strengths.
_MAIN_DIRECTIONS = 128
_SUBSPACE_STEPS = 3
_MAIN_STEPS = 1
_ITERATIONS_FOR_A_PRECONDITIONER = 12  # a new one costs about so many
_SMALL = 20_000_000  # rows × features × columns, up to which float64 and a high precision cost next to nothing
_SMALL_PRECISION = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Bottlenecks made ready for fitting: centred and scaled, with a last feature that is always 1.

    The signed square roots are `values * scale + mean`. The scale, one number for a group of features, makes their mean
    square 1, so that an `l2` means the same for every backbone, and deep and early blocks weigh the same. The weight of
    the last feature is the bias.
    """

    with_one: Real
    """The prepared features, n×(d+1), the last one always 1."""
    mean: NDArray[np.float64]
    """Means (d) of the signed square roots over the rows."""
    scale: NDArray[np.float64]
    """The numbers (d) by which the centred values were divided, the same for all features of a group."""

    @property
    def values(self) -> Real:
        """The prepared features without the last one, n×d."""
        return self.with_one[:, :-1]

    @cached_property
    def main_directions(self) -> Real:
        """An orthonormal basis ((d+1)×r) of the directions in which the rows vary most, and of the last feature.

        They are found by subspace iteration from a fixed random start (Halko, Martinsson and Tropp, SIAM Review 53,
        2011).
        """
        values = self.values
        d = values.shape[1]
        if d <= _MAIN_DIRECTIONS:
            return np.eye(d + 1, dtype=values.dtype)
        draws = np.random.Generator(np.random.Philox(key=[0, d])).standard_normal((d, _MAIN_DIRECTIONS))
        basis = draws.astype(values.dtype)
        for _ in range(_SUBSPACE_STEPS):
            basis, _ = np.linalg.qr(values.T @ (values @ basis))
        directions = np.zeros((d + 1, _MAIN_DIRECTIONS + 1), values.dtype)
        directions[:-1, :-1], directions[-1, -1] = basis, 1
        return directions


def signed_sqrt(bottlenecks: NDArray[np.floating]) -> Floats:
    """Take the signed square root of each value, which evens out how strongly features fire (Perronnin et al., 2010).

    On the clothing photos, at 256 pixels, it lowered the cross-validated log loss from 0.323 to 0.302 nats.
    """
    values = bottlenecks.astype(np.float32)
    return np.copysign(np.sqrt(np.abs(values)), values)


def unit_rows(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale each row (n×d) to length 1, so that products of rows are cosines; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def prepare_features(bottlenecks: NDArray[np.floating], widths: Sequence[int] | None = None) -> Features:
    """Take the signed square root of `bottlenecks` (n×d, any float type), centre and scale.

    Args:
        bottlenecks: one row an image.
        widths: number of features in each group, in their order, where groups are scaled each by a number of its own;
            left out, all features are one group.

    Raises:
        HeadError: a value is NaN or infinite, or all rows are equal.
    """
    with_one = np.ones((len(bottlenecks), bottlenecks.shape[1] + 1), np.float32)
    values = with_one[:, :-1]
    values[:] = signed_sqrt(bottlenecks)
    mean = values.mean(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # infinities are refused below
        values -= mean.astype(np.float32)
    largest = max(float(values.max()), -float(values.min()))
    if not np.isfinite(largest):
        raise HeadError(
            "The bottlenecks hold values that are not finite; the store may be damaged: run 'quickstudy cache verify'"
        )
    if largest == 0.0:
        raise HeadError("All images give the same bottleneck, so nothing can be learned from them; are they blank?")
    scale = np.ones(values.shape[1])
    for group in _slices(widths or [values.shape[1]]):
        mine = values[:, group]
        if largest := max(float(mine.max()), -float(mine.min())):  # else it is the same in all images, and stays
            mine /= np.float32(largest)  # squares of what is huge, or tiny, are no float32
            spread = float(np.mean(np.square(mine), dtype=np.float64)) ** 0.5
            mine /= np.float32(spread)
            scale[group] = largest * spread
    return Features(with_one=with_one, mean=mean, scale=scale)


def _slices(widths: Sequence[int]) -> list[slice]:
    ends = list(accumulate(widths))
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def in_row_space(features: Features) -> tuple[Features, NDArray[np.float64]]:
    """Write the n rows in an orthonormal basis of the space that they span; return them and the basis (d×r), for n < d.

    The penalty keeps the optimum's weights in that space, so nothing is lost, and few images make a small problem: 300
    are fitted eight times sooner. The basis comes from the rows' inner products, which takes a tenth of the time of a
    QR decomposition.
    """
    x = features.values.astype(np.float64)
    squares, directions = np.linalg.eigh(x @ x.T)
    spanned = squares > squares[-1] * np.finfo(np.float64).eps * len(x)
    lengths, directions = np.sqrt(squares[spanned]), directions[:, spanned]
    rotated = np.hstack([directions * lengths, np.ones((len(x), 1))])
    return Features(with_one=rotated, mean=features.mean, scale=features.scale), x.T @ (directions / lengths)


def in_main_directions(features: Features, count: int) -> tuple[Features, NDArray[np.float64]]:
    """Write the rows in the directions in which they vary most; return them and the directions (d×count).

    The rest is left to the mean: what varies little says little, and a penalty would shrink its weights most.
    """
    x = features.values
    draws = np.random.Generator(np.random.Philox(key=[0, len(x)])).standard_normal((len(x), count), np.float32)
    basis = x.T @ draws.astype(x.dtype)
    for _ in range(_MAIN_STEPS):
        basis = x.T @ (x @ _orthonormal(basis))
    basis = _orthonormal(basis)
    rotated = np.hstack([x @ basis, np.ones((len(x), 1), x.dtype)])
    return Features(with_one=rotated, mean=features.mean, scale=features.scale), basis.astype(np.float64)


def _orthonormal(columns: Real) -> Real:
    """Make an orthonormal basis (d×r) of the space of columns (d×r), of full rank up to rounding.

    It is Cholesky's way, at the rate of products: twice, since rounding leaves the first basis slightly askew.
    """
    for _ in range(2):
        columns = columns / np.linalg.norm(columns, axis=0)
        inner = columns.T.astype(np.float64) @ columns
        inner[np.diag_indices_from(inner)] += 1e-10 * len(inner)
        columns = columns @ np.linalg.inv(np.linalg.cholesky(inner)).T.astype(columns.dtype)
    return columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """Optima for F training sets."""

    weights: Real
    """Weights for prepared features, F×d×K."""
    biases: Real
    """Biases for prepared features, F×K."""
    logits: Real
    """Logits of all rows, held-out ones among them, n×F×K."""
    iterations: int
    """Number of iterations of conjugate gradients, over all steps."""
    change: float
    """Root mean square over the rows, held-out ones among them, by which the last step changed the probabilities, in
    the worst training set; infinite where a training set did not take a full step."""
    gap: float
    """Bound on how far the loss of the worst training set is above its optimum, in nats."""


def fit_softmax(
    features: Features,
    labels: NDArray[np.intp],
    sample_weights: Real,
    *,
    classes: int,
    l2: float,
    precision: float,
    start: tuple[Real, Real] | None = None,
) -> Fit:
    """Fit one softmax regression to each column of `sample_weights`, to the optimum.

    Args:
        features: n prepared feature rows.
        labels: n class numbers, 0 to `classes` - 1.
        sample_weights: n×F, one column a training set, each summing to 1; 0 leaves a row out.
        classes: number of classes K.
        l2: strength of the penalty, per unit of mean loss and of prepared feature.
        precision: largest root mean square by which the rows' probabilities, held-out rows' among them, may differ
            from those at the optimum; small problems go to 1e-6 at any rate. See the module for what is proven of it.
        start: weights and biases to start from, shaped as in `Fit` (a neighbour on the regularisation path).

    Raises:
        HeadError: no optimum was reached, in float64 and from zero weights either: the strength is too weak for these
            features.
    """
    n, sets = sample_weights.shape
    width = features.with_one.shape[1]
    begin = np.zeros((sets, classes, width))
    if start is not None:
        begin[:, :, :-1], begin[:, :, -1] = np.moveaxis(start[0], 1, 2), start[1]
    parameters: Real = begin.reshape(sets * classes, width)
    iterations = 0
    small = n * width * sets * classes <= _SMALL
    precision = min(precision, _SMALL_PRECISION) if small else precision
    for dtype, warm in ((np.float32, 1), (np.float64, 1), (np.float64, 0))[small:]:
        problem = _Problem(features, labels, sample_weights, classes, l2, precision, dtype)
        state, spent, converged = problem.minimise((parameters * warm).astype(dtype))
        iterations += spent
        if converged:
            break
        parameters = state.parameters
    else:
        raise HeadError(
            f"The head has not reached its optimum at regularisation {l2:g}: its loss may be {state.gap:.0e} nats "
            "above it, so nothing was written. Take a stronger regularisation, or leave the choice to cross-validation"
        )
    shaped = state.parameters.reshape(sets, classes, width)
    return Fit(
        weights=np.moveaxis(shaped[:, :, :-1], 2, 1),
        biases=shaped[:, :, -1],
        logits=np.moveaxis(state.logits, 2, 0),
        iterations=iterations,
        change=state.change,
        gap=state.gap,
    )


@dataclass(kw_only=True)
class _State:
    """The point that a minimisation has come to."""

    parameters: Real
    """Weights and, last, biases, FK×(d+1)."""
    logits: Real
    """Logits of all rows, F×K×n, so that sums over classes run along whole rows of memory."""
    probabilities: Real
    """Probabilities of all rows, F×K×n."""
    losses: Real
    """Losses of all rows, F×n, in nats."""
    gradient: Real
    """The objective's gradient, FK×(d+1)."""
    change: float = np.inf
    """Root mean square by which the step that led here changed the probabilities; see `Fit`."""
    gap: float = np.inf
    """Bound on how far the loss is above its optimum, in nats; infinite until the biases are settled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Preconditioner:
    """An approximate inverse of the Hessian: a class's own block in the main directions, one number in the others."""

    directions: Real
    """The main directions, (d+1)×r."""
    inverses: Real
    """Inverse of each class's block in the main directions, K×r×r."""
    others: Real
    """Inverse of each class's curvature in all other directions, K."""

    def apply(self, gradient: Real) -> Real:
        """Multiply a gradient (FK×(d+1)), or what is shaped like one, by the inverse."""
        classes, r, _ = self.inverses.shape
        inside = gradient @ self.directions
        solved = (inside.reshape(-1, classes, r).swapaxes(0, 1) @ self.inverses).swapaxes(0, 1).reshape(inside.shape)
        others = np.tile(self.others, len(gradient) // classes)[:, None]
        applied: Real = gradient * others + (solved - inside * others) @ self.directions.T
        return applied


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
    ) -> None:
        self.x = features.with_one.astype(dtype, copy=False)
        self.labels, self.rows = labels, np.arange(len(labels))
        # To the last digit of float64, since what sums to 1 in float32 does not in float64.
        weights = sample_weights.astype(np.float64)
        self.sample_weights = np.ascontiguousarray((weights / weights.sum(axis=0)).T.astype(dtype))
        self.sets, self.classes, self.dtype = sample_weights.shape[1], classes, dtype
        self.l2 = float(dtype(l2))
        self.main = features.main_directions.astype(dtype, copy=False)
        self.in_main = self.x @ self.main
        squares = np.einsum("ij,ij->i", self.x, self.x) - np.einsum("ij,ij->i", self.in_main, self.in_main)
        self.squares_outside = np.maximum(squares, 0)
        self.most_change = _LAST_STEP * precision
        self.most_gap = _GAP_SHARE * precision
        self.longest_gradient = float(np.sqrt(2 * l2 * self.most_gap))

    def minimise(self, parameters: Real) -> tuple[_State, int, bool]:
        """Run Newton's method from `parameters` on: where it ends, its iterations, and whether it has converged."""
        state = self.begin(parameters)
        preconditioner, used = self.preconditioner(state.probabilities), 0
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
                preconditioner, used = self.preconditioner(state.probabilities), 0
        return self.settled(state), iterations, False

    def begin(self, parameters: Real) -> _State:
        """Choose the state to start from: `parameters`, but zero for training sets where they are worse than nothing.

        Far from the optimum probabilities are 0 and 1, where the loss has no curvature for a step to go by.
        """
        logits = (parameters @ self.x.T).reshape(self.sets, self.classes, -1)
        state = self.state(parameters, logits)
        good = self.objective(state) <= np.log(self.classes) * (1 + 1e-6)  # zero itself, up to rounding
        if good.all():
            return state
        return self.state(parameters * self.spread(good), logits * good.astype(self.dtype)[:, None, None])

    def at(self, logits: Real) -> tuple[Real, Real, Real]:
        """Work out probabilities, losses, and the residual: the weighted losses' derivative by the logits (F×K×n)."""
        z = logits - logits.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        losses = np.log(total[:, 0]) - z[:, self.labels, self.rows]
        residual = p * self.sample_weights[:, None]
        # 1 - p of the label as the sum of the others: the difference would keep no digit where p is nearly 1.
        residual[:, self.labels, self.rows] = 0
        residual[:, self.labels, self.rows] = -residual.sum(axis=1)
        return p, losses, residual

    def state(self, parameters: Real, logits: Real) -> _State:
        """Work out the state of these parameters, whose logits are known."""
        probabilities, losses, residual = self.at(logits)
        gradient = residual.reshape(len(parameters), -1) @ self.x
        gradient[:, :-1] += self.dtype(self.l2) * parameters[:, :-1]
        return _State(
            parameters=parameters, logits=logits, probabilities=probabilities, losses=losses, gradient=gradient
        )

    def preconditioner(self, probabilities: Real) -> _Preconditioner:
        """Make the preconditioner for Hessians at these probabilities, on average over the training sets."""
        r = self.main.shape[1]
        blocks, others = np.empty((self.classes, r, r)), np.empty(self.classes)
        for number in range(self.classes):
            p = probabilities[:, number]
            curvatures = np.einsum("fn,fn,fn->n", p, 1 - p, self.sample_weights) / self.dtype(self.sets)
            blocks[number] = (self.in_main * curvatures[:, None]).T @ self.in_main
            others[number] = curvatures @ self.squares_outside
        blocks[:, range(r - 1), range(r - 1)] += self.l2
        blocks[:, -1, -1] += _LEAST_CURVATURE
        others = 1 / (self.l2 + others / max(self.x.shape[1] - r, 1))
        return _Preconditioner(
            directions=self.main,
            inverses=np.linalg.inv(blocks).astype(self.dtype),
            others=others.astype(self.dtype),
        )

    def newton_step(self, state: _State, preconditioner: _Preconditioner) -> tuple[Real, Real, int]:
        """Solve Hessian · step = -gradient: the step, its change of the logits, iterations of conjugate gradients."""
        step, change = np.zeros_like(state.parameters), np.zeros_like(state.logits)
        left = -state.gradient
        upwards = preconditioner.apply(left)
        direction = upwards.copy()
        product = self.dot(left, upwards)
        goal, iterations = _FORCING**2 * product, 0
        while iterations < _MOST_ITERATIONS and (product > goal).any():
            iterations += 1
            moved = (direction @ self.x.T).reshape(state.logits.shape)
            bent = state.probabilities * moved
            bent -= state.probabilities * bent.sum(axis=1, keepdims=True)
            bent *= self.sample_weights[:, None]
            curved = bent.reshape(len(direction), -1) @ self.x
            curved[:, :-1] += self.dtype(self.l2) * direction[:, :-1]
            curvature = self.dot(direction, curved)
            going = (curvature > 0) & (product > 0)
            if not going.any():
                break
            length = self.spread(np.where(going, product / np.where(going, curvature, 1), 0))
            step += direction * length
            change += moved * length.reshape(self.sets, self.classes, 1)
            left -= curved * length
            upwards = preconditioner.apply(left)
            before, product = product, self.dot(left, upwards)
            direction *= self.spread(np.where(going, product / np.where(going, before, 1), 0))
            direction += upwards
        return step, change, iterations

    def search(self, state: _State, step: Real, change: Real) -> _State:
        """Go along `step` up to where the loss falls: for each training set the whole step or a part of it.

        The loss is convex along the step. Where its slope is not positive yet, it is lower than at the start; where the
        slope is positive, the loss must have fallen by a tenth of what the first slope promises (Armijo's rule), up to
        rounding.
        """
        first = self.dot(state.gradient, step)
        pull = self.l2 * self.dot(state.parameters[:, :-1], step[:, :-1])
        bend = self.l2 * self.dot(step[:, :-1], step[:, :-1])
        loss = self.mean(state.losses)
        rounding = 8 * float(np.finfo(self.dtype).eps) * (1 + loss)
        share = np.where(first < 0, 1.0, 0.0)
        while True:
            logits = state.logits + change * share.astype(self.dtype)[:, None, None]
            _, losses, residual = self.at(logits)
            slope = np.einsum("fkn,fkn->f", residual, change, dtype=np.float64) + pull + share * bend
            rise = self.mean(losses) - loss + share * pull + share**2 * bend / 2
            far = (share > 0) & (slope > 0) & (rise > share * first / 10 + rounding)
            if not far.any():
                break
            shorter = np.clip(first / np.where(far, first - slope, 1), 0.1, 0.9)
            share = np.where(far, np.where(share < _LEAST_SHARE, 0, share * shorter), share)
        reached = self.state(state.parameters + step * self.spread(share), logits)
        if ((share == 1) | (first >= 0)).all():  # at the optimum up to rounding, there is no way down
            squares = np.square(reached.probabilities - state.probabilities).sum(axis=1).mean(axis=1, dtype=np.float64)
            reached.change = float(np.sqrt(squares.max()))
        return reached

    def settled(self, state: _State) -> _State:
        """Bring the biases to their optimum for the weights as they are, on which the gap's bound rests.

        They are found by Newton's method in float64.
        """
        shifts = np.zeros((self.sets, self.classes))
        for number, shift in enumerate(shifts):
            weights = self.sample_weights[number].astype(np.float64)
            wanted = np.bincount(self.labels, weights, minlength=self.classes)
            z = state.logits[number].astype(np.float64)
            for _ in range(_MOST_BIAS_STEPS):
                p = np.exp(z + shift[:, None] - (z + shift[:, None]).max(axis=0))
                p /= p.sum(axis=0)
                weighted = p * weights
                excess = weighted.sum(axis=1) - wanted
                if np.abs(excess).max() < 1e-12:
                    break
                hessian = np.diag(weighted.sum(axis=1)) - weighted @ p.T
                # Equal shifts of all classes change nothing, so the Hessian is singular along them: 1/K fills that in.
                filled = hessian + 1 / self.classes + 1e-14 * np.eye(self.classes)
                shift -= np.clip(np.linalg.solve(filled, excess), -1, 1)
        shifts = shifts.astype(self.dtype)
        parameters = state.parameters.copy()
        parameters[:, -1] += shifts.reshape(-1)
        settled = self.state(parameters, state.logits + shifts[:, :, None])
        settled.change = state.change
        settled.gap = self.longest(settled.gradient[:, :-1]) ** 2 / (2 * self.l2)
        return settled

    def dot(self, a: Real, b: Real) -> NDArray[np.float64]:
        """Work out the inner products (F) of two arrays of parameters, set by set."""
        products: NDArray[np.float64] = np.einsum("ij,ij->i", a, b).reshape(self.sets, -1).sum(1, dtype=np.float64)
        return products

    def longest(self, gradient: Real) -> float:
        """Measure the longest gradient of a training set."""
        return float(np.sqrt(self.dot(gradient, gradient).max()))

    def objective(self, state: _State) -> NDArray[np.float64]:
        """Work out the objective of each training set (F), in nats."""
        weights = state.parameters[:, :-1]
        return self.mean(state.losses) + self.l2 / 2 * self.dot(weights, weights)

    def mean(self, losses: Real) -> NDArray[np.float64]:
        """Work out the weighted mean of the rows' losses (F), in nats."""
        mean: NDArray[np.float64] = np.einsum("fn,fn->f", losses, self.sample_weights, dtype=np.float64)
        return mean

    def spread(self, by_set: NDArray[np.floating]) -> Real:
        """Spread one number a training set (F) to a column of one number a row of parameters (FK×1)."""
        column: Real = np.repeat(by_set, self.classes).astype(self.dtype)[:, None]
        return column
