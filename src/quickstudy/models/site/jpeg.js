// JPEGs at 1/2, 1/4 or 1/8 of their size, to the bit as libjpeg gives them when it is asked for a scaled image, which
// is how quickstudy's Python decodes large photos. Browsers decode them whole and smooth the colours on the way, which
// moved probabilities by up to 0.04; libjpeg's pixels to the bit bring that to 2·10⁻⁶. Baseline and progressive, 8 bits, grey or YCbCr in the samplings that cameras write;
// null for all else. After ITU-T T.81; the inverse transforms are those of Loeffler, Ligtenberg and Moschytz (1989) in
// 13-bit fixed point, with outputs averaged in twos and fours where fewer are wanted.

const ZIGZAG = Uint8Array.of(
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
  35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55,
  62, 63,
);

const SPARE = 3; // bytes of any value that may be left over at the end of a scan; some cameras write one or two

class Damage extends Error {}

/** What of a JPEG was read: {frame}, null where it is of a kind that this cannot read; {damage} says what is missing in
 * it or wrong, by the rules of quickstudy's images/jpegs.py, and is empty where all of the image is there. */
export function examine(bytes) {
  try {
    const frame = readCoefficients(bytes);
    return { frame, damage: frame ? missing(frame) : "" };
  } catch (error) {
    if (error instanceof Damage) return { frame: null, damage: error.message };
    if (error instanceof RangeError || error instanceof TypeError) return { frame: null, damage: "" };
    throw error;
  }
}

/** Pixels ({width, height, data}, 3 bytes a pixel) at 1/factor of the size, rounded up; null where this cannot be done. */
export function decodeReduced(bytes, factor) {
  const { frame, damage } = examine(bytes);
  return frame && !damage ? render(frame, factor) : null;
}

function missing({ parts }) {
  for (const { low } of parts) {
    if (low.some((bits) => bits < 0)) return "scans of it are missing";
    if (low.some((bits) => bits > 0)) return "the last scans, which refine it, are missing";
  }
  return "";
}

function readCoefficients(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const quantisation = [], dcTables = [], acTables = [];
  let frame = null, restart = 0, place = 2;
  while (place + 4 <= bytes.length) {
    if (bytes[place] !== 0xff) return null;
    const marker = bytes[place + 1];
    if (marker === 0xff) { place++; continue; }
    if (marker === 0xd9) break;
    const end = place + 2 + view.getUint16(place + 2);
    let at = place + 4;
    if (marker === 0xdb) {
      while (at < end) {
        const wide = bytes[at] >> 4, table = (quantisation[bytes[at++] & 15] = new Int32Array(64));
        for (let n = 0; n < 64; n++, at += wide ? 2 : 1) table[ZIGZAG[n]] = wide ? view.getUint16(at) : bytes[at];
      }
    } else if (marker === 0xc4) {
      while (at < end) {
        const kind = bytes[at++], counts = bytes.subarray(at, at + 16), total = counts.reduce((a, b) => a + b, 0);
        (kind >> 4 ? acTables : dcTables)[kind & 15] = huffmanTable(counts, bytes.subarray(at + 16, at + 16 + total));
        at += 16 + total;
      }
    } else if (marker === 0xdd) {
      restart = view.getUint16(at);
    } else if (marker === 0xee && String.fromCharCode(...bytes.subarray(at, at + 5)) === "Adobe" && bytes[at + 11] !== 1) {
      return null;
    } else if (marker >= 0xc0 && marker <= 0xc2) {
      frame = readFrame(bytes, view, at, marker === 0xc2);
      if (!frame) return null;
    } else if (marker === 0xda) {
      place = readScan(bytes, at, frame, dcTables, acTables, restart);
      for (const part of frame.parts) part.table ??= quantisation[part.quantisation]?.slice();
      continue;
    } else if (marker >= 0xc3 && marker <= 0xcf && marker !== 0xc8 && marker !== 0xcc) {
      return null;
    }
    place = end;
  }
  return frame;
}

function readFrame(bytes, view, at, progressive) {
  const height = view.getUint16(at + 1), width = view.getUint16(at + 3), count = bytes[at + 5];
  if (bytes[at] !== 8 || !height || !width || (count !== 1 && count !== 3)) return null;
  const parts = Array.from({ length: count }, (_, n) => {
    const place = at + 6 + 3 * n;
    return { id: bytes[place], h: bytes[place + 1] >> 4, v: bytes[place + 1] & 15, quantisation: bytes[place + 2], last: 0, low: new Int8Array(64).fill(-1) };
  });
  if (count === 1) parts[0].h = parts[0].v = 1;
  const sampling = parts.map(({ h, v }) => `${h}${v}`).join();
  if (!["11", "11,11,11", "21,11,11", "22,11,11"].includes(sampling)) return null;
  if (count === 3 && parts.map(({ id }) => String.fromCharCode(id)).join("") === "RGB") return null;
  const { h: maxH, v: maxV } = parts[0];
  const across = Math.ceil(width / (8 * maxH)), down = Math.ceil(height / (8 * maxV));
  for (const part of parts) {
    part.across = across * part.h; // blocks, those that only fill up included
    part.usedAcross = Math.ceil((width * part.h) / (8 * maxH));
    part.usedDown = Math.ceil((height * part.v) / (8 * maxV));
    part.coefficients = new Int16Array(part.across * down * part.v * 64);
  }
  return { width, height, parts, across, down, progressive, maxH, maxV };
}

/** Values by code: for each length, the first code, and where its values begin. */
function huffmanTable(counts, values) {
  const quick = new Int16Array(256).fill(-1), limits = new Int32Array(18), offsets = new Int32Array(17);
  let code = 0, place = 0;
  for (let length = 1; length <= 16; length++) {
    offsets[length] = place - code;
    for (let n = 0; n < counts[length - 1]; n++, code++, place++) {
      if (length <= 8) quick.fill((length << 8) | values[place], code << (8 - length), (code + 1) << (8 - length));
    }
    limits[length] = code;
    code <<= 1;
  }
  return { quick, limits, offsets, values };
}

/** Adds a scan to the coefficients; returns where the next marker is. */
function readScan(bytes, at, frame, dcTables, acTables, restart) {
  const count = bytes[at++];
  const parts = Array.from({ length: count }, (_, n) => {
    const part = frame.parts.find(({ id }) => id === bytes[at + 2 * n]);
    part.dc = dcTables[bytes[at + 2 * n + 1] >> 4];
    part.ac = acTables[bytes[at + 2 * n + 1] & 15];
    return part;
  });
  at += 2 * count;
  const first = bytes[at], last = bytes[at + 1], high = bytes[at + 2] >> 4, low = bytes[at + 2] & 15;
  for (const part of parts) part.low.fill(...(frame.progressive ? [low, first, last + 1] : [0]));
  let place = at + 3, buffer = 0, have = 0, run = 0, made = 0; // made: bits that were not in the data

  function fill() {
    while (have <= 16) {
      let byte = bytes[place] ?? 0;
      if (byte === 0xff) {
        if (bytes[place + 1] === 0) place += 2;
        else { byte = 0; made += 8; } // a marker: zeros from here on
      } else if (place >= bytes.length) {
        made += 8;
      } else place++;
      buffer = (buffer << 8) | byte;
      have += 8;
    }
  }
  function bits(count) {
    if (!count) return 0;
    if (have < count) fill();
    have -= count;
    return (buffer >> have) & ((1 << count) - 1);
  }
  function decode({ quick, limits, offsets, values }) {
    if (have < 16) fill();
    const known = quick[(buffer >> (have - 8)) & 255];
    if (known >= 0) {
      have -= known >> 8;
      return known & 255;
    }
    for (let length = 9; length <= 16; length++) {
      const code = (buffer >> (have - length)) & ((1 << length) - 1);
      if (code < limits[length]) {
        have -= length;
        return values[offsets[length] + code];
      }
    }
    throw new Damage("its scan holds a code that no table has");
  }
  function signed(count) {
    const value = bits(count);
    return value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
  }

  function whole(part, c, o) {
    const size = decode(part.dc);
    part.last += size ? signed(size) : 0;
    c[o] = part.last;
    for (let k = 1; k < 64; k++) {
      const symbol = decode(part.ac), zeros = symbol >> 4, size = symbol & 15;
      if (size) c[o + ZIGZAG[(k += zeros)]] = signed(size);
      else if (zeros === 15) k += 15;
      else break;
    }
  }
  function dcFirst(part, c, o) {
    const size = decode(part.dc);
    part.last += size ? signed(size) : 0;
    c[o] = part.last << low;
  }
  function dcMore(part, c, o) {
    if (bits(1)) c[o] |= 1 << low;
  }
  function acFirst(part, c, o) {
    if (run) { run--; return; }
    for (let k = first; k <= last; k++) {
      const symbol = decode(part.ac), zeros = symbol >> 4, size = symbol & 15;
      if (size) c[o + ZIGZAG[(k += zeros)]] = signed(size) * (1 << low);
      else if (zeros === 15) k += 15;
      else { run = (1 << zeros) - 1 + bits(zeros); break; }
    }
  }
  function refine(c, at) {
    if (bits(1) && !(Math.abs(c[at]) & (1 << low))) c[at] += c[at] > 0 ? 1 << low : -(1 << low);
  }
  function acMore(part, c, o) {
    let k = first;
    while (!run && k <= last) {
      const symbol = decode(part.ac), size = symbol & 15;
      let zeros = symbol >> 4, value = 0;
      if (size) value = bits(1) ? 1 << low : -(1 << low);
      else if (zeros < 15) { run = (1 << zeros) + bits(zeros); break; }
      for (; k <= last; k++) {
        const at = o + ZIGZAG[k];
        if (c[at]) refine(c, at);
        else if (zeros-- === 0) { c[at] = value; k++; break; }
      }
    }
    if (run) {
      for (; k <= last; k++) if (c[o + ZIGZAG[k]]) refine(c, o + ZIGZAG[k]);
      run--;
    }
  }

  const step = !frame.progressive ? whole : first === 0 ? (high ? dcMore : dcFirst) : high ? acMore : acFirst;
  const single = count === 1, [only] = parts;
  const across = single ? only.usedAcross : frame.across, down = single ? only.usedDown : frame.down;
  for (const part of parts) part.last = 0;
  for (let unit = 0; unit < across * down; unit++) {
    if (restart && unit && unit % restart === 0) {
      if (made > have) throw new Damage("data are missing within its scan");
      have = buffer = run = made = 0;
      while (place + 1 < bytes.length && !(bytes[place] === 0xff && bytes[place + 1] >= 0xd0 && bytes[place + 1] <= 0xd7)) place++;
      if ((bytes[place + 1] & 7) !== (unit / restart - 1) % 8) throw new Damage("the restarts of its scan are out of order");
      place += 2;
      for (const part of parts) part.last = 0;
    }
    const column = unit % across, row = (unit - column) / across;
    if (single) step(only, only.coefficients, (row * only.across + column) * 64);
    else {
      for (const part of parts) {
        for (let v = 0; v < part.v; v++) {
          for (let h = 0; h < part.h; h++) {
            step(part, part.coefficients, ((row * part.v + v) * part.across + column * part.h + h) * 64);
          }
        }
      }
    }
  }
  if (made > have) throw new Damage("its scan ends before its last block");
  const unused = place - ((have - made) >> 3);
  while (place + 1 < bytes.length && !(bytes[place] === 0xff && bytes[place + 1] !== 0 && !(bytes[place + 1] >= 0xd0 && bytes[place + 1] <= 0xd7))) place++;
  const rest = bytes.subarray(unused, place + 1 < bytes.length ? place : bytes.length);
  if (rest.length > SPARE && rest.some((byte) => byte !== rest[0])) throw new Damage("the data of its scan lost their place");
  return place;
}

export function render(frame, factor) {
  const side = 8 / factor, width = Math.ceil(frame.width / factor), height = Math.ceil(frame.height / factor);
  const planes = frame.parts.map((part) => {
    // Colours that were stored at half the size both ways are transformed at twice: no need to enlarge them afterwards.
    const halved = frame.maxH === 2 * part.h && frame.maxV === 2 * part.v;
    const plane = transform(part, halved ? 2 * side : side);
    return frame.maxH === 2 * part.h && !halved ? widen(plane, Math.ceil((frame.width * side) / 16), side > 1) : plane;
  });
  const data = new Uint8ClampedArray(width * height * 3);
  const [y, b, r] = planes;
  for (let row = 0, place = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const light = y.data[row * y.stride + column];
      if (!b) {
        data[place++] = light; data[place++] = light; data[place++] = light;
        continue;
      }
      const blue = b.data[row * b.stride + column] - 128, red = r.data[row * r.stride + column] - 128;
      data[place++] = light + ((91881 * red + 32768) >> 16); // BT.601, in 16-bit fixed point
      data[place++] = light + ((-22554 * blue - 46802 * red + 32768) >> 16);
      data[place++] = light + ((116130 * blue + 32768) >> 16);
    }
  }
  return { width, height, data: new Uint8Array(data.buffer) };
}

/** Twice as wide: each new value three parts of the nearer and one of the farther old one, or the nearer one. */
function widen({ data, stride }, used, smooth) {
  const rows = data.length / stride, wide = new Uint8ClampedArray(rows * used * 2);
  for (let row = 0; row < rows; row++) {
    for (let n = 0; n < used; n++) {
      const at = row * stride + n, value = data[at], to = row * used * 2 + 2 * n, blend = smooth && used > 2;
      wide[to] = blend && n > 0 ? (3 * value + data[at - 1] + 1) >> 2 : value;
      wide[to + 1] = blend && n < used - 1 ? (3 * value + data[at + 1] + 2) >> 2 : value;
    }
  }
  return { data: wide, stride: used * 2 };
}

/** The inverse cosine transform of all blocks, to side × side values each. */
function transform({ coefficients, table, across }, side) {
  const blocks = coefficients.length / 64, stride = across * side;
  const data = new Uint8ClampedArray(blocks * side * side), values = new Int32Array(64), columns = new Int32Array(64);
  const [line, spread] = { 8: [eight, 0], 4: [four, 1], 2: [two, 2], 1: [null, 0] }[side];
  for (let block = 0; block < blocks; block++) {
    const corner = Math.floor(block / across) * side * stride + (block % across) * side;
    for (let n = 0; n < 64; n++) values[n] = coefficients[block * 64 + n] * table[n];
    if (!line) {
      data[corner] = ((values[0] + 4) >> 3) + 128;
      continue;
    }
    for (let column = 0; column < 8; column++) line(values, column, 8, columns, column, 8, 11 + spread, null);
    for (let row = 0; row < side; row++) line(columns, row * 8, 1, data, corner + row * stride, 1, 18 + spread, 128);
  }
  return { data, stride };
}

// Each takes 8 values from `i` on, `s` apart, and writes 8, 4 or 2 to `o` from `p` on, `q` apart, rounded and shifted.

function eight(i, a, s, o, p, q, shift, offset) {
  const half = 1 << (shift - 1), plus = offset ?? 0;
  const even = (i[a + 2 * s] + i[a + 6 * s]) * 4433;
  const e2 = even - i[a + 6 * s] * 15137, e3 = even + i[a + 2 * s] * 6270;
  const e0 = (i[a] + i[a + 4 * s]) * 8192, e1 = (i[a] - i[a + 4 * s]) * 8192;
  const i1 = i[a + s], i3 = i[a + 3 * s], i5 = i[a + 5 * s], i7 = i[a + 7 * s];
  const z5 = (i7 + i3 + i5 + i1) * 9633, z1 = (i7 + i1) * -7373, z2 = (i5 + i3) * -20995;
  const z3 = (i7 + i3) * -16069 + z5, z4 = (i5 + i1) * -3196 + z5;
  const o0 = i7 * 2446 + z1 + z3, o1 = i5 * 16819 + z2 + z4, o2 = i3 * 25172 + z2 + z3, o3 = i1 * 12299 + z1 + z4;
  const t0 = e0 + e3, t3 = e0 - e3, t1 = e1 + e2, t2 = e1 - e2;
  o[p] = ((t0 + o3 + half) >> shift) + plus;
  o[p + 7 * q] = ((t0 - o3 + half) >> shift) + plus;
  o[p + q] = ((t1 + o2 + half) >> shift) + plus;
  o[p + 6 * q] = ((t1 - o2 + half) >> shift) + plus;
  o[p + 2 * q] = ((t2 + o1 + half) >> shift) + plus;
  o[p + 5 * q] = ((t2 - o1 + half) >> shift) + plus;
  o[p + 3 * q] = ((t3 + o0 + half) >> shift) + plus;
  o[p + 4 * q] = ((t3 - o0 + half) >> shift) + plus;
}

function four(i, a, s, o, p, q, shift, offset) {
  const half = 1 << (shift - 1), plus = offset ?? 0;
  const base = i[a] * 16384, even = i[a + 2 * s] * 15137 - i[a + 6 * s] * 6270;
  const i1 = i[a + s], i3 = i[a + 3 * s], i5 = i[a + 5 * s], i7 = i[a + 7 * s];
  const inner = i7 * -1730 + i5 * 11893 - i3 * 17799 + i1 * 8697;
  const outer = i7 * -4176 - i5 * 4926 + i3 * 7373 + i1 * 20995;
  o[p] = ((base + even + outer + half) >> shift) + plus;
  o[p + 3 * q] = ((base + even - outer + half) >> shift) + plus;
  o[p + q] = ((base - even + inner + half) >> shift) + plus;
  o[p + 2 * q] = ((base - even - inner + half) >> shift) + plus;
}

function two(i, a, s, o, p, q, shift, offset) {
  const half = 1 << (shift - 1), plus = offset ?? 0;
  const base = i[a] * 32768;
  const odd = i[a + 7 * s] * -5906 + i[a + 5 * s] * 6967 - i[a + 3 * s] * 10426 + i[a + s] * 29692;
  o[p] = ((base + odd + half) >> shift) + plus;
  o[p + q] = ((base - odd + half) >> shift) + plus;
}
