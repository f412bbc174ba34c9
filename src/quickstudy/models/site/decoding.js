// From a file to upright pixels, as quickstudy's images/decoding.py has them: no colour management, EXIF orientation,
// alpha over white, and large JPEGs reduced block by block before anything else.

import { decodeReduced } from "./jpeg.js";
import { largestFactor } from "./pixels.js";

const STRIP = 1024; // rows at a time: phones limit the size of a canvas

/** Pixels ({width, height, data}, 3 bytes a pixel) of an image file (Blob), or of anything that can be drawn. */
export async function decode(source, spec) {
  if (!(source instanceof Blob)) return read(source, source.videoWidth ?? source.width, source.videoHeight ?? source.height);
  const bytes = new Uint8Array(await source.arrayBuffer());
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8 ? plainJpeg(bytes) : null;
  const blob = jpeg ? new Blob(jpeg.parts, { type: "image/jpeg" }) : source;
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This is no image that the browser can read.");
  }
  try {
    const factor = jpeg ? largestFactor(Math.min(bitmap.width, bitmap.height), spec) : 1;
    const pixels = factor > 1 ? decodeReduced(bytes, factor) : null;
    return upright(pixels ?? reduceBlocks(read(bitmap, bitmap.width, bitmap.height), factor), jpeg?.orientation);
  } finally {
    bitmap.close();
  }
}

function read(picture, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = Math.min(STRIP, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const data = new Uint8Array(width * height * 3);
  for (let top = 0, place = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(picture, 0, -top);
    const strip = context.getImageData(0, 0, width, rows).data;
    for (let n = 0; n < strip.length; n += 4) {
      data[place++] = strip[n]; data[place++] = strip[n + 1]; data[place++] = strip[n + 2];
    }
  }
  return { width, height, data };
}

/** A JPEG without what would make the browser turn it or change its colours, and the orientation it asked for. */
function plainJpeg(bytes) {
  const parts = [bytes.subarray(0, 2)];
  let place = 2, orientation = 1;
  while (place + 4 <= bytes.length && bytes[place] === 0xff) {
    const marker = bytes[place + 1], length = 2 + bytes[place + 2] * 256 + bytes[place + 3];
    if (marker === 0xda) break; // the image itself begins
    const segment = bytes.subarray(place, place + length);
    if (marker === 0xe1 && orientation === 1) orientation = exifOrientation(segment.subarray(4)) ?? 1;
    if (marker <= 0xe0 || marker >= 0xf0 || marker === 0xee) parts.push(segment); // APP14 says how colours are coded
    place += length;
  }
  parts.push(bytes.subarray(place));
  return { parts, orientation };
}

/** The orientation (1 to 8) in an EXIF segment's content, if there is one. */
function exifOrientation(segment) {
  if (String.fromCharCode(...segment.subarray(0, 6)) !== "Exif\0\0") return null;
  const tiff = new DataView(segment.buffer, segment.byteOffset + 6, segment.byteLength - 6);
  try {
    const little = tiff.getUint16(0) === 0x4949, start = tiff.getUint32(4, little);
    for (let entry = 0; entry < tiff.getUint16(start, little); entry++) {
      const place = start + 2 + 12 * entry;
      if (tiff.getUint16(place, little) === 0x0112) return tiff.getUint16(place + 8, little);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // damaged tags are none
  }
  return null;
}

/** The mean of each factor × factor pixels from the upper left corner on; blocks at the edges may be smaller.
 * For the few JPEGs that `decodeReduced` cannot read: near what Python has, within a level or so. */
function reduceBlocks(pixels, factor) {
  if (factor === 1) return pixels;
  const { width, height, data } = pixels;
  const across = Math.ceil(width / factor), down = Math.ceil(height / factor), result = new Uint8Array(across * down * 3);
  for (let row = 0, place = 0; row < down; row++) {
    for (let column = 0; column < across; column++) {
      const right = Math.min(width, (column + 1) * factor), bottom = Math.min(height, (row + 1) * factor);
      const count = (right - column * factor) * (bottom - row * factor);
      for (let channel = 0; channel < 3; channel++) {
        let sum = count >> 1;
        for (let y = row * factor; y < bottom; y++) {
          for (let x = column * factor; x < right; x++) sum += data[(y * width + x) * 3 + channel];
        }
        result[place++] = sum / count;
      }
    }
  }
  return { width: across, height: down, data: result };
}

/** Turned and mirrored as the EXIF orientation says. */
function upright(pixels, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return pixels;
  const { width, height, data } = pixels, swapped = orientation >= 5;
  const across = swapped ? height : width, down = swapped ? width : height, result = new Uint8Array(data.length);
  const fromRight = [2, 3, 7, 8].includes(orientation), fromBottom = [3, 4, 6, 7].includes(orientation);
  for (let row = 0, place = 0; row < down; row++) {
    for (let column = 0; column < across; column++) {
      const x = swapped ? row : column, y = swapped ? column : row;
      const source = ((fromBottom ? height - 1 - y : y) * width + (fromRight ? width - 1 - x : x)) * 3;
      result[place++] = data[source]; result[place++] = data[source + 1]; result[place++] = data[source + 2];
    }
  }
  return { width: across, height: down, data: result };
}
