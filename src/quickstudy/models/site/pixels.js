// From a picture's pixels to what the network takes: the same integer arithmetic as quickstudy's
// images/decoding.py, so that the same decoded pixels give the same input to the bit. Filters of Pillow's are in
// pillow.js.

import { filterOf, resizedByPillow } from "./pillow.js";

/** To the nearest integer, halves to the even one, as Python and NumPy round. */
function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

const MARGIN = 127; // the level of the margins that `pad` leaves
const FAR = 20; // what lies more widths away from the middle than this is cut off before it is resized

/** The largest of libjpeg's fast reductions that leaves the image at least as large as the network's input; none before
 * Pillow's filters, which weigh all pixels. */
export function largestFactor(width, height, spec) {
  if (filterOf(spec)) return 1;
  const side = spec.fit === "pad" ? Math.max(width, height) : Math.min(width, height) * spec.crop;
  return [8, 4, 2].find((factor) => side >= spec.size * factor) ?? 1;
}

/** The number of squares that an image makes, each a pass through the network. */
export function tilesIn(spec) {
  return { tiles2: 2, tiles3: 3 }[spec.fit] ?? 1;
}

/** The network's input: the centred square, or what else the fit makes of the image, each side halved as often as it
 * takes, then resized bilinearly, or by a filter of Pillow's.
 * pixels: {width, height, data}, data with 3 bytes a pixel. Returns a Uint8Array of size × size × 3, or for several
 * squares, one above the other, as many times that. */
export function toInput(pixels, spec) {
  const { width, height } = pixels, { size } = spec, tiles = tilesIn(spec), filter = filterOf(spec);
  if (spec.fit === "squash") return resized(pixels, [0, 0, width, height], size, size, filter);
  if (spec.fit === "pad") return padded(pixels, size, filter);
  if (tiles === 1 && filter) return middle(pixels, spec, filter);
  if (tiles === 1) {
    const side = Math.max(1, roundHalfEven(Math.min(width, height) * spec.crop));
    return resized(pixels, [Math.floor((width - side) / 2), Math.floor((height - side) / 2), side, side], size, size);
  }
  const side = Math.min(width, height), result = new Uint8Array(tiles * size * size * 3);
  for (let number = 0; number < tiles; number++) {
    const [left, top] = [width, height].map((length) => Math.floor((number * (length - side)) / (tiles - 1)));
    result.set(resized(pixels, [left, top, side, side], size, size, filter), number * size * size * 3);
  }
  return result;
}

/** The middle of the image whose shorter side a filter of Pillow's has brought to `size / crop`. */
function middle(pixels, { size, crop, resize }, filter) {
  const shorter = Math.min(pixels.width, pixels.height);
  const [[left, across], [top, down]] = [pixels.width, pixels.height].map((side) => {
    const first = Math.max(0, Math.floor((side - FAR * shorter) / 2));
    return [first, Math.min(side, Math.floor((side + FAR * shorter) / 2)) - first];
  });
  const edge = roundHalfEven(size / crop);
  const [width, height] = [across, down].map((side) => Math.floor((edge * side) / shorter));
  const whole = resizedByPillow(pixels, [left, top, across, down], width, height, filter);
  const rounded = resize.startsWith("torchvision") ? roundHalfEven : Math.floor;
  const [startX, startY] = [width, height].map((side) => rounded((side - size) / 2));
  const result = new Uint8Array(size * size * 3);
  for (let row = 0; row < size; row++) {
    const from = ((startY + row) * width + startX) * 3;
    result.set(whole.subarray(from, from + size * 3), row * size * 3);
  }
  return result;
}

/** The image in the middle of a square of grey, its longer side as long as the square's. */
function padded(pixels, size, filter) {
  const longer = Math.max(pixels.width, pixels.height);
  const [width, height] = [pixels.width, pixels.height].map((side) =>
    Math.max(1, Math.floor((2 * side * size + longer) / (2 * longer))));
  const shown = resized(pixels, [0, 0, pixels.width, pixels.height], width, height, filter);
  const left = Math.floor((size - width) / 2), top = Math.floor((size - height) / 2);
  const result = new Uint8Array(size * size * 3).fill(MARGIN);
  for (let row = 0; row < height; row++) {
    result.set(shown.subarray(row * width * 3, (row + 1) * width * 3), ((top + row) * size + left) * 3);
  }
  return result;
}

/** A part of the image (left, top, width, height) at another size: each side halved as often as it takes, then resized;
 * or by a filter of Pillow's. */
function resized(pixels, [left, top, width, height], across, down, filter) {
  if (filter) return resizedByPillow(pixels, [left, top, width, height], across, down, filter);
  const [byX, byY] = [halvings(width, across), halvings(height, down)];
  const columns = Math.floor(width / byX), rows = Math.floor(height / byY);
  const startX = left + Math.floor((width % byX) / 2), startY = top + Math.floor((height % byY) / 2);
  const smaller = reduce(pixels, startX, startY, columns, rows, byX, byY);
  return columns === across && rows === down ? smaller : resize(smaller, columns, rows, across, down);
}

/** The largest power of two that a side can be divided by without falling below the target. */
function halvings(side, target) {
  let factor = 1;
  while (side >= target * factor * 2) factor *= 2;
  return factor;
}

/** The mean of each byX × byY pixels, of columns × rows such blocks. */
function reduce({ width, data }, left, top, columns, rows, byX, byY) {
  const result = new Uint8Array(columns * rows * 3), count = byX * byY, half = count >> 1;
  for (let row = 0, place = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, place += 3) {
      let red = half, green = half, blue = half;
      for (let y = 0; y < byY; y++) {
        let source = ((top + row * byY + y) * width + left + column * byX) * 3;
        for (let x = 0; x < byX; x++, source += 3) {
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
function resize(pixels, columns, rows, across, down) {
  const blended = new Uint8Array(down * columns * 3), result = new Uint8Array(down * across * 3);
  taps(rows, down).forEach(([upper, lower, weight], row) => {
    for (let n = 0; n < columns * 3; n++) {
      const above = pixels[upper * columns * 3 + n], below = pixels[lower * columns * 3 + n];
      blended[row * columns * 3 + n] = (above * (256 - weight) + below * weight + 128) >> 8;
    }
  });
  const places = taps(columns, across);
  for (let row = 0; row < down; row++) {
    places.forEach(([left, right, weight], column) => {
      for (let channel = 0; channel < 3; channel++) {
        const before = blended[(row * columns + left) * 3 + channel], after = blended[(row * columns + right) * 3 + channel];
        result[(row * across + column) * 3 + channel] = (before * (256 - weight) + after * weight + 128) >> 8;
      }
    });
  }
  return result;
}
