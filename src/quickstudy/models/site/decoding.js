// From a file to upright pixels, as quickstudy's images/decoding.py has them: EXIF orientation, alpha over white, large
// JPEGs reduced block by block before anything else, and what is damaged refused. Colours are left as they are stored
// where the profile is sRGB's or there is none; else the browser converts them.

import { examine, render } from "./jpeg.js";
import { largestFactor } from "./pixels.js";

const STRIP = 1024; // rows at a time: phones limit the size of a canvas

/** Pixels ({width, height, data}, 3 bytes a pixel) of an image file (Blob), or of anything that can be drawn. */
export async function decode(source, spec) {
  if (!(source instanceof Blob)) return read(source, source.videoWidth ?? source.width, source.videoHeight ?? source.height);
  const bytes = new Uint8Array(await source.arrayBuffer());
  if (bitsBeyond(bytes, spec)) {
    throw new Error(`This PNG has 16 bits a level, of which ${spec.bits} count for this model; a browser gives 8. Use quickstudy predict or serve.`);
  }
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8 ? plainJpeg(bytes) : null;
  const blob = jpeg ? new Blob(jpeg.parts, { type: "image/jpeg" }) : source;
  const { frame, damage } = jpeg ? examine(bytes) : {};
  if (damage) throw new Error(`This photo is damaged: ${damage}.`);
  const managed = jpeg ? jpeg.managed : hasProfile(bytes);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: managed ? "default" : "none" });
  } catch {
    throw new Error("The browser cannot read this as an image.");
  }
  try {
    const factor = jpeg ? largestFactor(bitmap.width, bitmap.height, spec) : 1;
    const pixels = factor > 1 && frame && !managed ? render(frame, factor) : null;
    return upright(pixels ?? reduceBlocks(read(bitmap, bitmap.width, bitmap.height), factor), jpeg?.orientation);
  } finally {
    bitmap.close();
  }
}

/** Whether these are the bytes of a PNG of 16 bits for a model that reads fewer of them: what a browser drops would count. */
export function bitsBeyond(bytes, spec) {
  return spec.bits !== undefined && bytes[0] === 0x89 && bytes[1] === 0x50 && bytes[24] === 16;
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

/** A JPEG without what would make the browser turn it, and the orientation it asked for; with its colour profile where
 * that is not sRGB's (managed), without what is behind its end, and with an end marker. */
export function plainJpeg(bytes) {
  const parts = [bytes.subarray(0, 2)], profile = [];
  let place = 2, orientation = 1;
  while (place + 4 <= bytes.length && bytes[place] === 0xff) {
    const marker = bytes[place + 1], length = 2 + bytes[place + 2] * 256 + bytes[place + 3];
    if (marker === 0xda) break; // the image itself begins
    const segment = bytes.subarray(place, place + length);
    if (marker === 0xe2 && text(segment.subarray(4, 15)) === "ICC_PROFILE") profile.push(segment);
    if (marker === 0xe1 && orientation === 1) orientation = exifOrientation(segment.subarray(4)) ?? 1;
    if (marker <= 0xe0 || marker >= 0xf0 || marker === 0xee) parts.push(segment); // APP14 says how colours are coded
    place += length;
  }
  const managed = profile.length > 0 && !/sRGB/i.test(profile.map(text).join("").replaceAll("\0", ""));
  if (managed) parts.splice(1, 0, ...profile);
  parts.push(bytes.subarray(place, endOfImage(bytes, place)), Uint8Array.of(0xff, 0xd9));
  return { parts, orientation, managed };
}

/** Where the image ends whose scans begin at a place: in front of its end marker, or at the end of the file. */
function endOfImage(bytes, place) {
  while (place + 1 < bytes.length) {
    const marker = bytes[place + 1];
    if (bytes[place] !== 0xff || marker === 0 || marker === 0xff || (marker >= 0xd0 && marker <= 0xd7)) place++;
    else if (marker === 0xd9) return place;
    else place += 2 + bytes[place + 2] * 256 + bytes[place + 3];
  }
  return bytes.length;
}

/** Whether a PNG or WebP has a colour profile; whether one of another format has, the browser knows. */
export function hasProfile(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (text(bytes.subarray(8, 16)) === "WEBPVP8X") return (bytes[20] & 0x20) !== 0;
  if (text(bytes.subarray(1, 4)) !== "PNG") return text(bytes.subarray(4, 8)) === "ftyp";
  for (let place = 8; place + 8 <= bytes.length; place += 12 + view.getUint32(place)) {
    const kind = text(bytes.subarray(place + 4, place + 8));
    if (kind === "iCCP") return true;
    if (kind === "IDAT") break;
  }
  return false;
}

function text(bytes) {
  let result = "";
  for (const byte of bytes) result += String.fromCharCode(byte);
  return result;
}

/** The orientation (1 to 8) in an EXIF segment's content, if there is one. */
function exifOrientation(segment) {
  if (text(segment.subarray(0, 6)) !== "Exif\0\0") return null;
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
