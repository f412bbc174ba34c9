// Filters of Pillow's, to its bit: what a place of the result is made of is weighed in fixed point of 22 bits, along
// one side and then along the other, each rounded to the nearest level.

const BITS = 22, ONE = 2 ** BITS;

const SHAPES = { // how far a filter reaches on either side, and its height there
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const [a, far] = [-0.5, Math.abs(x)];
    if (far < 1) return ((a + 2) * far - (a + 3)) * far * far + 1;
    return far < 2 ? (((far - 5) * far + 8) * far - 4) * a : 0;
  }],
  lanczos: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** The filter that a specification names; null for quickstudy's own arithmetic. */
export function filterOf({ resize }) {
  const [whose, name] = resize.split("-");
  return whose === "pillow" || whose === "torchvision" ? name : null;
}

/** A part of the image (left, top, width, height) as across × down pixels. */
export function resizedByPillow(pixels, [left, top, width, height], across, down, filter) {
  const part = cut(pixels, left, top, width, height);
  if (width === across && height === down) return part;
  if (filter === "nearest") return nearest(part, width, height, across, down);
  const alongRows = (given, rows) =>
    width === across ? given : weighed(given, tapsOf(width, across, filter), rows, 3, width * 3, across * 3, 3);
  const alongColumns = (given, columns) =>
    height === down ? given : weighed(given, tapsOf(height, down, filter), columns, columns * 3, 3, 3, columns * 3);
  const heightFirst = height > down && height - down > 2 * (width - across);
  return heightFirst ? alongRows(alongColumns(part, width), down) : alongColumns(alongRows(part, height), across);
}

function cut({ width, data }, left, top, across, down) {
  const result = new Uint8Array(across * down * 3);
  for (let row = 0; row < down; row++) {
    const from = ((top + row) * width + left) * 3;
    result.set(data.subarray(from, from + across * 3), row * across * 3);
  }
  return result;
}

/** For each of `size` places: the first source place that counts, and the weights from there on, in whole 2^-22. */
function tapsOf(length, size, filter) {
  const [support, heightAt] = SHAPES[filter], scale = length / size, stretched = Math.max(scale, 1);
  const reach = support * stretched, step = 1 / stretched;
  return Array.from({ length: size }, (_, number) => {
    const centre = (number + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const heights = Array.from({ length: end - first }, (_, n) => heightAt((n + first - centre + 0.5) * step));
    let sum = 0;
    for (const height of heights) sum += height;
    const weights = heights.map((height) => (sum === 0 ? height : height / sum) * ONE);
    return [first, Float64Array.from(weights, (weight) => Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5))];
  });
}

/** Each of `lines` lines at the places of the taps: in the source, places are `step` values apart and lines `line`; in the
 * result, lines are `lineTo` values apart and places `stepTo`. */
function weighed(data, taps, lines, step, line, lineTo, stepTo) {
  const result = new Uint8Array(taps.length * lines * 3);
  for (let number = 0; number < lines; number++) {
    for (let place = 0; place < taps.length; place++) {
      const [first, weights] = taps[place];
      let red = ONE / 2, green = ONE / 2, blue = ONE / 2;
      for (let n = 0, from = number * line + first * step; n < weights.length; n++, from += step) {
        const weight = weights[n];
        red += data[from] * weight; green += data[from + 1] * weight; blue += data[from + 2] * weight;
      }
      const to = number * lineTo + place * stepTo;
      result[to] = level(red); result[to + 1] = level(green); result[to + 2] = level(blue);
    }
  }
  return result;
}

function level(sum) {
  return Math.min(Math.max(Math.floor(sum / ONE), 0), 255);
}

/** The nearest pixels; places are added up one by one, as Pillow does it, so that they round as there. */
function nearest(part, width, height, across, down) {
  const places = (length, size) => {
    const scale = length / size, found = new Array(size);
    let place = scale * 0.5;
    for (let number = 0; number < size; number++, place += scale) found[number] = Math.min(Math.trunc(place), length - 1);
    return found;
  };
  const columns = places(width, across), rows = places(height, down), result = new Uint8Array(across * down * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * width + column) * 3;
      result[to++] = part[from]; result[to++] = part[from + 1]; result[to++] = part[from + 2];
    }
  }
  return result;
}
