// SHA-256 (FIPS 180-4), by which photos are known everywhere in quickstudy. Browsers have one of their own, but only for
// pages that came by https or from this machine.

const fraction = (value) => Math.floor((value - Math.floor(value)) * 2 ** 32);
const primes = [];
for (let number = 2; primes.length < 64; number++) if (primes.every((prime) => number % prime)) primes.push(number);
const ROUND = Uint32Array.from(primes, (prime) => fraction(Math.cbrt(prime)));
const START = Uint32Array.from(primes.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

/** The digest of bytes (Uint8Array), as 64 hexadecimal digits. */
export function sha256(bytes) {
  const state = START.slice(), w = new Uint32Array(64), whole = bytes.length - (bytes.length % 64);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let place = 0; place < whole; place += 64) mix(state, w, view, place);
  const rest = bytes.length - whole, tail = new Uint8Array(rest < 56 ? 64 : 128);
  tail.set(bytes.subarray(whole));
  tail[rest] = 0x80;
  const end = new DataView(tail.buffer);
  end.setBigUint64(tail.length - 8, BigInt(bytes.length) * 8n);
  for (let place = 0; place < tail.length; place += 64) mix(state, w, end, place);
  return [...state].map((word) => word.toString(16).padStart(8, "0")).join("");
}

function mix(state, w, view, start) {
  for (let n = 0; n < 16; n++) w[n] = view.getUint32(start + 4 * n);
  for (let n = 16; n < 64; n++) {
    const a = w[n - 15], b = w[n - 2];
    w[n] = w[n - 16] + w[n - 7] + ((a >>> 7 | a << 25) ^ (a >>> 18 | a << 14) ^ (a >>> 3)) + ((b >>> 17 | b << 15) ^ (b >>> 19 | b << 13) ^ (b >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let n = 0; n < 64; n++) {
    const first = (h + ((e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7)) + ((e & f) ^ (~e & g)) + ROUND[n] + w[n]) | 0;
    const second = (((a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g; g = f; f = e; e = (d + first) | 0; d = c; c = b; b = a; a = (first + second) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((value, n) => { state[n] += value; });
}
