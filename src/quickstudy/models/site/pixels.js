// From a picture's pixels to the square that the network takes: the same integer arithmetic as quickstudy's
// images/decoding.py, so that the same decoded pixels give the same input to the bit.

/** To the nearest integer, halves to the even one, as Python and NumPy round. */
function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** The largest of libjpeg's fast reductions that leaves the square at least as large as the network's input. */
export function largestFactor(shorterSide, spec) {
  return [8, 4, 2].find((factor) => shorterSide * spec.crop >= spec.size * factor) ?? 1;
}

/** The centred square, halved as often as it takes, then resized bilinearly.
 * pixels: {width, height, data}, data with 3 bytes a pixel. Returns a Uint8Array of size × size × 3. */
export function toInput(pixels, spec) {
  const { width, height } = pixels;
  let side = Math.max(1, roundHalfEven(Math.min(width, height) * spec.crop));
  const left = Math.floor((width - side) / 2), top = Math.floor((height - side) / 2);
  let factor = 1;
  while (side >= spec.size * factor * 2) factor *= 2;
  const start = Math.floor((side % factor) / 2);
  side = Math.floor(side / factor);
  const square = reduce(pixels, left + start, top + start, side, factor);
  return side === spec.size ? square : resize(square, side, spec.size);
}

/** The mean of each factor × factor pixels, of a square with `side` such blocks a side. */
function reduce({ width, data }, left, top, side, factor) {
  const result = new Uint8Array(side * side * 3), half = (factor * factor) >> 1, count = factor * factor;
  for (let row = 0, place = 0; row < side; row++) {
    for (let column = 0; column < side; column++, place += 3) {
      let red = half, green = half, blue = half;
      for (let y = 0; y < factor; y++) {
        let source = ((top + row * factor + y) * width + left + column * factor) * 3;
        for (let x = 0; x < factor; x++, source += 3) {
          red += data[source]; green += data[source + 1]; blue += data[source + 2];
        }
      }
      result[place] = red / count; result[place + 1] = green / count; result[place + 2] = blue / count;
    }
  }
  return result;
}

/** For each of `size` places: the two source places it lies between, and the second one's weight of 256. */
function taps(length, size) {
  return Array.from({ length: size }, (_, number) => {
    const place = Math.min(Math.max(((number + 0.5) * length) / size - 0.5, 0), length - 1);
    const first = Math.min(Math.floor(place), Math.max(length - 2, 0));
    return [first, Math.min(first + 1, length - 1), roundHalfEven((place - first) * 256)];
  });
}

/** First over rows, then over columns, each rounded to the nearest level. */
function resize(square, length, size) {
  const places = taps(length, size), blended = new Uint8Array(size * length * 3), result = new Uint8Array(size * size * 3);
  places.forEach(([upper, lower, weight], row) => {
    for (let n = 0; n < length * 3; n++) {
      const above = square[upper * length * 3 + n], below = square[lower * length * 3 + n];
      blended[row * length * 3 + n] = (above * (256 - weight) + below * weight + 128) >> 8;
    }
  });
  for (let row = 0; row < size; row++) {
    places.forEach(([left, right, weight], column) => {
      for (let channel = 0; channel < 3; channel++) {
        const before = blended[(row * length + left) * 3 + channel], after = blended[(row * length + right) * 3 + channel];
        result[(row * size + column) * 3 + channel] = (before * (256 - weight) + after * weight + 128) >> 8;
      }
    });
  }
  return result;
}
