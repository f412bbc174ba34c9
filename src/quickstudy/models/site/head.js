// The head of classes that are taught in the browser: softmax regression at its optimum, as quickstudy's Python finds it
// (learning/softmax.py, selection.py). The same features (signed square roots, centred, each group scaled to mean square
// 1), the same penalty, the same folds by content hash, and the same temperature; probabilities agree to 1e-5.
//
// Where there are fewer pictures than features, rows are written in the space that they span, by the Cholesky factor of
// their inner products. Newton's method, each step solved by conjugate gradients until its error is a fourth of what it
// was; the preconditioner is each class's own block of the curvature in the directions in which rows vary most, and one
// number in all others. All in float64.

const FOLDS = 5;
const MOST_STEPS = 60, MOST_ITERATIONS = 500;
// Largest change of a probability in the last step, which leaves less than a third of it: of the head, and of those that
// judge it and set the temperature.
const CLOSE = 1e-6, CLOSE_TO_JUDGE = 1e-4;
const FORCING = 1 / 16; // of the error's square, as the preconditioner measures it
const MAIN = 64, SUBSPACE_STEPS = 3; // directions in which rows vary most
const WORTH = 1e-3; // curvature of a picture that the preconditioner knows of
const OWN = 1e-9; // of the mean square length, in a direction of a row's own, where rows depend on each other
const FEWEST_TO_CALIBRATE = 50; // held-out pictures

const signedRoot = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));
const ROOTS = Float32Array.from({ length: 65536 }, (_, half) => signedRoot(floatOf(half)));
/** The signed square roots of 16-bit floating point numbers, as which pictures' features are kept. */
export const rootsOf = (halves) => Float32Array.from(halves, (half) => ROOTS[half]);

/** The value of a 16-bit floating point number (IEEE 754), given by its bits. */
function floatOf(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** The bits of the nearest 16-bit floating point numbers, halves to the even one, as NumPy rounds. */
export function halvesOf(values) {
  return Uint16Array.from(values, (value) => {
    const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0, size = Math.abs(value);
    if (Number.isNaN(value)) return 0x7e00;
    const exponent = Math.max(Math.floor(Math.log2(size || 1e-30)), -14), step = 2 ** (exponent - 10);
    const steps = size / step, floor = Math.floor(steps), rest = steps - floor;
    const whole = rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor; // 2048 carries into the exponent
    return sign | Math.min((exponent + 14) * 1024 + whole, 0x7c00);
  });
}

/** Fits the head to rows (Float32Arrays of signed roots), each with a class number of K and a content hash (digits).
 * widths: number of features in each group; breathe: is awaited between fits, and says by a true value that nobody waits
 * for this head any more. Gives weights (d×K by class) and biases for signed roots, the temperature, and of how many
 * held-out pictures how many were right; null where it was given up. */
export async function fitHead(rows, labels, keys, classes, { l2, widths }, breathe = () => false) {
  const prepared = prepare(rows, widths), space = inSmallSpace(prepared), n = rows.length;
  const even = new Float64Array(n).fill(1 / n), whole = fit(space, labels, even, classes, l2, null, CLOSE);
  const folds = foldsOf(labels, keys), logits = [], truth = [];
  for (let fold = 0; fold < FOLDS; fold++) {
    const held = [...folds.keys()].filter((row) => folds[row] === fold);
    if (!held.length) continue;
    const weights = Float64Array.from(folds, (other) => (other === fold ? 0 : 1 / (n - held.length)));
    if (await breathe()) return null;
    const found = fit(space, labels, weights, classes, l2, whole, CLOSE_TO_JUDGE);
    for (const row of held) {
      logits.push(logitsOf(space, found, row, classes));
      truth.push(labels[row]);
    }
  }
  const temperature = temperatureOf(logits, truth);
  const weights = inFeatures(prepared, space, whole, classes), biases = new Float64Array(classes);
  for (let c = 0; c < classes; c++) {
    biases[c] = whole[c * (space.width + 1) + space.width];
    for (let k = 0; k < prepared.width; k++) {
      weights[c][k] /= prepared.scale[k] * temperature;
      biases[c] -= prepared.mean[k] * weights[c][k] * temperature;
    }
    biases[c] /= temperature;
  }
  const right = logits.filter((row, place) => row.indexOf(Math.max(...row)) === truth[place]).length;
  return { weights, biases, temperature, heldOut: { right, n: truth.length } };
}

/** Probabilities of a picture by its features as the network gives them. */
export function probabilitiesOf({ weights, biases }, features) {
  const roots = Float64Array.from(features, signedRoot);
  return softmax(weights.map((column, c) => column.reduce((sum, weight, k) => sum + weight * roots[k], biases[c])));
}

function softmax(logits) {
  const most = Math.max(...logits), shares = logits.map((logit) => Math.exp(logit - most));
  const total = shares.reduce((sum, share) => sum + share);
  return shares.map((share) => share / total);
}

/** Rows (n×d, one after the other), centred and scaled, with what was taken away. */
function prepare(rows, widths) {
  const n = rows.length, width = rows[0].length, values = new Float64Array(n * width);
  const mean = new Float64Array(width), scale = new Float64Array(width).fill(1), squares = new Float64Array(width);
  for (const row of rows) for (let k = 0; k < width; k++) mean[k] += row[k] / n;
  rows.forEach((row, place) => {
    for (let k = 0; k < width; k++) {
      const value = row[k] - mean[k];
      values[place * width + k] = value;
      squares[k] += (value * value) / n;
    }
  });
  let from = 0;
  for (const many of widths) {
    let spread = 0;
    for (let k = from; k < from + many; k++) spread += squares[k] / many;
    if (spread > 0) scale.fill(Math.sqrt(spread), from, from + many);
    from += many;
  }
  for (let place = 0; place < n; place++) for (let k = 0; k < width; k++) values[place * width + k] /= scale[k];
  return { n, width, values, mean, scale };
}

/** The rows as they are, or written in the space that they span, with the directions in which they vary most. */
function inSmallSpace({ n, width, values }) {
  if (n >= width) return withMain({ n, width, values, factor: null });
  const products = new Float64Array(n * n);
  let trace = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) products[i * n + j] = dot(values, i * width, values, j * width, width);
    trace += products[i * n + i];
  }
  for (let i = 0; i < n; i++) products[i * n + i] += (OWN * trace) / n;
  const factor = cholesky(products, n);
  return withMain({ n, width: n, values: factor, factor });
}

/** Adds an orthonormal basis of the main directions (r×width), by subspace iteration from a fixed start; the rows in
 * them (n×r); and the squared length of what of each row lies outside. */
function withMain(space) {
  const { n, width, values } = space, r = Math.min(MAIN, width), basis = new Float64Array(r * width);
  let state = 1;
  for (let k = 0; k < basis.length; k++) basis[k] = (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
  const inMain = new Float64Array(n * r);
  const project = () => {
    for (let row = 0; row < n; row++) for (let j = 0; j < r; j++) inMain[row * r + j] = dot(values, row * width, basis, j * width, width);
  };
  for (let step = 0; step < SUBSPACE_STEPS && r < width; step++) {
    orthonormalise(basis, r, width);
    project();
    basis.fill(0);
    for (let row = 0; row < n; row++) for (let j = 0; j < r; j++) add(inMain[row * r + j], values, row * width, basis, j * width, width);
  }
  orthonormalise(basis, r, width);
  project();
  const outside = Float64Array.from({ length: n }, (_, row) =>
    Math.max(0, dot(values, row * width, values, row * width, width) - dot(inMain, row * r, inMain, row * r, r)));
  return { ...space, r, basis, inMain, outside };
}

function orthonormalise(basis, r, width) {
  for (let j = 0; j < r; j++) {
    for (let pass = 0; pass < 2; pass++) {
      for (let i = 0; i < j; i++) add(-dot(basis, i * width, basis, j * width, width), basis, i * width, basis, j * width, width);
      const length = Math.sqrt(dot(basis, j * width, basis, j * width, width)) || 1;
      for (let k = 0; k < width; k++) basis[j * width + k] /= length;
    }
  }
}

/** Adds a multiple of some values to others. */
function add(factor, one, at, other, from, length) {
  for (let k = 0; k < length; k++) other[from + k] += factor * one[at + k];
}

/** Inner product of some values of two arrays; four sums at a time, as each addition would else wait for the last. */
function dot(one, at, other, from, length) {
  let a = 0, b = 0, c = 0, d = 0, k = 0;
  for (; k < length - 3; k += 4) {
    a += one[at + k] * other[from + k];
    b += one[at + k + 1] * other[from + k + 1];
    c += one[at + k + 2] * other[from + k + 2];
    d += one[at + k + 3] * other[from + k + 3];
  }
  for (; k < length; k++) a += one[at + k] * other[from + k];
  return a + b + c + d;
}

/** The lower triangular factor of a positive definite matrix, of which the lower triangle is given. */
function cholesky(matrix, n) {
  const factor = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const rest = matrix[i * n + j] - dot(factor, i * n, factor, j * n, j);
      factor[i * n + j] = i === j ? Math.sqrt(Math.max(rest, Number.MIN_VALUE)) : rest / factor[j * n + j];
    }
  }
  return factor;
}

/** Solves L·Lᵀ·x = b in place, for one right side that begins at a place. */
function solve(factor, n, x, at) {
  for (let i = 0; i < n; i++) x[at + i] = (x[at + i] - dot(factor, i * n, x, at, i)) / factor[i * n + i];
  solveTransposed(factor, n, x, at);
}

function solveTransposed(factor, n, x, at) {
  for (let i = n - 1; i >= 0; i--) {
    const value = (x[at + i] /= factor[i * n + i]);
    for (let j = 0; j < i; j++) x[at + j] -= factor[i * n + j] * value;
  }
}

/** Weights for prepared features, by class, of those in the rows' own space. */
function inFeatures({ n, width, values }, space, parameters, classes) {
  return Array.from({ length: classes }, (_, c) => {
    const mine = parameters.slice(c * (space.width + 1), c * (space.width + 1) + space.width);
    if (!space.factor) return mine;
    solveTransposed(space.factor, n, mine, 0);
    const weights = new Float64Array(width);
    for (let row = 0; row < n; row++) for (let k = 0; k < width; k++) weights[k] += mine[row] * values[row * width + k];
    return weights;
  });
}

function logitsOf({ width, values }, parameters, row, classes) {
  return Array.from({ length: classes }, (_, c) =>
    parameters[c * (width + 1) + width] + dot(parameters, c * (width + 1), values, row * width, width));
}

/** The optimum for rows with weights that sum to 1: for each class its weights and, last, its bias. */
function fit(space, labels, weights, classes, l2, start, close) {
  const { n, width, values } = space, size = classes * (width + 1);
  let parameters = start ? start.slice() : new Float64Array(size);
  const products = (given) => { // of rows with parameters, n×K
    const logits = new Float64Array(n * classes);
    for (let row = 0; row < n; row++) {
      for (let c = 0; c < classes; c++) {
        const from = c * (width + 1);
        logits[row * classes + c] = given[from + width] + dot(given, from, values, row * width, reach(space, row));
      }
    }
    return logits;
  };
  const back = (logits, given) => { // derivatives by logits, taken to parameters, and the penalty's
    const result = new Float64Array(size);
    for (let row = 0; row < n; row++) {
      if (!weights[row]) continue;
      for (let c = 0; c < classes; c++) {
        const value = logits[row * classes + c], from = c * (width + 1);
        add(value, values, row * width, result, from, reach(space, row));
        result[from + width] += value;
      }
    }
    for (let c = 0; c < classes; c++) add(l2, given, c * (width + 1), result, c * (width + 1), width);
    return result;
  };
  const judged = (logits, given) => { // probabilities, and the objective
    const shares = logits.slice();
    let loss = 0;
    for (let row = 0; row < n; row++) {
      const from = row * classes, most = shares.subarray(from, from + classes).reduce((a, b) => Math.max(a, b));
      let total = 0;
      for (let c = 0; c < classes; c++) total += shares[from + c] = Math.exp(logits[from + c] - most);
      for (let c = 0; c < classes; c++) shares[from + c] /= total;
      loss += weights[row] * (most + Math.log(total) - logits[from + labels[row]]);
    }
    for (let c = 0; c < classes; c++) loss += 0.5 * l2 * dot(given, c * (width + 1), given, c * (width + 1), width);
    return { shares, loss };
  };
  let logits = products(parameters), { shares, loss } = judged(logits, parameters);
  let precondition = null, preconditioned = null;
  for (let step = 0; step < MOST_STEPS; step++) {
    const residual = shares.slice();
    for (let row = 0; row < n; row++) {
      residual[row * classes + labels[row]] -= 1;
      for (let c = 0; c < classes; c++) residual[row * classes + c] *= weights[row];
    }
    if (!preconditioned || largestChange(shares, preconditioned) > 0.05) {
      precondition = preconditioner(space, shares, weights, classes, l2);
      preconditioned = shares;
    }
    const bent = (direction) => {
      const moved = products(direction);
      for (let row = 0; row < n; row++) {
        const from = row * classes, mean = dot(moved, from, shares, from, classes);
        for (let c = 0; c < classes; c++) moved[from + c] = weights[row] * shares[from + c] * (moved[from + c] - mean);
      }
      return back(moved, direction);
    };
    const gradient = back(residual, parameters), change = newtonStep(gradient, bent, precondition);
    const slope = dot(gradient, 0, change, 0, size), moved = products(change);
    let next, nextLogits, found;
    for (let length = 1; ; length /= 2) {
      next = parameters.slice();
      nextLogits = logits.slice();
      add(length, change, 0, next, 0, size);
      add(length, moved, 0, nextLogits, 0, logits.length);
      found = judged(nextLogits, next);
      if (found.loss <= loss + 1e-4 * length * slope + 1e-14 || length < 1e-6) break;
    }
    const most = largestChange(found.shares, shares);
    [parameters, logits, shares, loss] = [next, nextLogits, found.shares, found.loss];
    if (most < close) break;
  }
  return parameters;
}

/** How many values of a row there are, all others being zero: a triangle has as many as there are rows up to it. */
const reach = (space, row) => (space.factor ? row + 1 : space.width);

function largestChange(one, other) {
  let most = 0;
  for (let k = 0; k < one.length; k++) most = Math.max(most, Math.abs(one[k] - other[k]));
  return most;
}

/** An approximate inverse of the curvature: a class's own block in the main directions, one number in all others. It
 * keeps the classes' mean at zero, where all gradients have it. */
function preconditioner({ width, r, basis, inMain, outside }, shares, weights, classes, l2) {
  const parts = Array.from({ length: classes }, (_, c) => {
    const rows = [...weights.keys()].filter((row) => weights[row] && shares[row * classes + c] * (1 - shares[row * classes + c]) > WORTH);
    const m = rows.length, scaled = new Float64Array((r + 1) * m), block = new Float64Array((r + 1) ** 2);
    let others = 0;
    rows.forEach((row, place) => {
      const share = shares[row * classes + c], root = Math.sqrt(weights[row] * share * (1 - share));
      for (let i = 0; i < r; i++) scaled[i * m + place] = root * inMain[row * r + i];
      scaled[r * m + place] = root;
      others += (root * root * outside[row]) / Math.max(width - r, 1);
    });
    for (let i = 0; i <= r; i++) for (let j = 0; j <= i; j++) block[i * (r + 1) + j] = dot(scaled, i * m, scaled, j * m, m);
    for (let i = 0; i < r; i++) block[i * (r + 1) + i] += l2;
    block[r * (r + 1) + r] += 1e-6;
    return { factor: cholesky(block, r + 1), others: 1 / (others + l2) };
  });
  return (gradient) => {
    const result = new Float64Array(gradient.length), inside = new Float64Array(r + 1), mean = new Float64Array(width + 1);
    parts.forEach(({ factor, others }, c) => {
      const from = c * (width + 1);
      for (let j = 0; j < r; j++) inside[j] = dot(basis, j * width, gradient, from, width);
      inside[r] = gradient[from + width];
      const before = inside.slice();
      solve(factor, r + 1, inside, 0);
      add(others, gradient, from, result, from, width);
      for (let j = 0; j < r; j++) add(inside[j] - before[j] * others, basis, j * width, result, from, width);
      result[from + width] = inside[r];
      add(1 / classes, result, from, mean, 0, width + 1);
    });
    for (let c = 0; c < classes; c++) add(-1, mean, 0, result, c * (width + 1), width + 1);
    return result;
  };
}

/** Newton's step: minus the inverse of the curvature times the gradient, as far as is worth it, by conjugate gradients. */
function newtonStep(gradient, bent, precondition) {
  const size = gradient.length, step = new Float64Array(size), rest = gradient.map((value) => -value);
  let ready = precondition(rest), direction = ready.slice(), energy = dot(rest, 0, ready, 0, size);
  const enough = FORCING * energy;
  for (let iteration = 0; iteration < MOST_ITERATIONS && energy > enough && energy > 1e-24; iteration++) {
    const turned = bent(direction), length = energy / dot(direction, 0, turned, 0, size);
    for (let k = 0; k < size; k++) {
      step[k] += length * direction[k];
      rest[k] -= length * turned[k];
    }
    ready = precondition(rest);
    const next = dot(rest, 0, ready, 0, size);
    direction = ready.map((value, k) => value + (next / energy) * direction[k]);
    energy = next;
  }
  return step;
}

/** Fold numbers for cross-validation, as learning/links.py deals them out: class by class, by content hash; the only
 * picture of a class is never held out (-1). */
function foldsOf(labels, keys) {
  const order = [...labels.keys()].sort((a, b) => labels[a] - labels[b] || (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
  const folds = new Array(labels.length).fill(-1);
  let number = 0, from = 0;
  while (from < order.length) {
    let to = from;
    while (to < order.length && labels[order[to]] === labels[order[from]]) to++;
    const mine = order.slice(from, to), different = new Set(mine.map((row) => keys[row]));
    if (different.size > 1) {
      mine.forEach((row, place) => {
        if (place && keys[row] !== keys[mine[place - 1]]) number++;
        folds[row] = number % FOLDS;
      });
      number++;
    }
    from = to;
  }
  return folds;
}

/**
 * What to divide logits by for the least log loss of held-out pictures; 1 where they are too few to tell, or are all told
 * apart, which would make it bolder and bolder.
 */
function temperatureOf(logits, truth) {
  if (logits.length < FEWEST_TO_CALIBRATE) return 1;
  const slope = (temperature) => logits.reduce((sum, row, place) => {
    const beyond = row.map((logit) => logit - row[truth[place]]);
    const shares = softmax(beyond.map((logit) => logit / temperature));
    return sum + shares.reduce((part, share, c) => part + share * beyond[c], 0);
  }, 0);
  let coldest = 0.25, hottest = 16;
  if (slope(coldest) <= 0) return 1;
  while (hottest > coldest * (1 + 1e-4)) {
    const middle = Math.sqrt(coldest * hottest);
    if (slope(middle) > 0) coldest = middle;
    else hottest = middle;
  }
  return Math.sqrt(coldest * hottest);
}
