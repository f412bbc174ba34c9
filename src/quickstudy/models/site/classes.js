// Taught classes as a file: of each its name, and of its pictures names, content hashes and bottlenecks, no pictures. The
// first line has the version and the SHA-256 of all that follows it; together they are JSON. `quickstudy merge` reads it.

import { sha256 } from "./digest.js";

const VERSION = 1;
const START = new RegExp(`^\\{"quickstudy":"classes","version":(\\d+),"sha256":"([0-9a-f]{64})",\n`);

/** The text of the file. settings: backbone, input, widths and l2; classes: [{name, pictures: [{name, digest, halves}]}]. */
export function written({ backbone, input, widths, l2 }, classes) {
  const body = JSON.stringify({
    backbone, input, widths, l2,
    classes: classes.map(({ name, pictures }) => ({
      name,
      pictures: pictures.map((one) => ({ name: one.name, sha256: one.digest })),
      bottlenecks: base64(pictures.map(({ halves }) => halves)),
    })),
  }).slice(1);
  return `{"quickstudy":"classes","version":${VERSION},"sha256":"${sha256(new TextEncoder().encode(body))}",\n${body}`;
}

/** The classes in such a file's text; an error says why it is none that the page can go on with. */
export function read(text, settings) {
  const [start, version, digest] = START.exec(text) ?? [];
  if (!start) throw new Error("it is no file of classes that such a page saved");
  if (Number(version) !== VERSION) throw new Error(`it is of version ${version}; this page reads version ${VERSION}`);
  const body = text.slice(start.length);
  if (sha256(new TextEncoder().encode(body)) !== digest) throw new Error("it has changed since it was saved: its checksum does not fit");
  const values = JSON.parse(`{${body}`), width = settings.widths.reduce((sum, one) => sum + one);
  for (const [name, mine, its] of [
    ["network", settings.backbone.fingerprint, values.backbone.fingerprint],
    ["input", JSON.stringify(settings.input), JSON.stringify(values.input)],
    ["strength", settings.l2, values.l2],
  ]) {
    if (mine !== its) throw new Error(`its ${name} is another one: ${shown(its)}, here it is ${shown(mine)}`);
  }
  return values.classes.map(({ name, pictures, bottlenecks }) => {
    const all = halvesIn(bottlenecks);
    return { name, pictures: pictures.map((one, place) => ({ name: one.name, digest: one.sha256, halves: all.slice(place * width, (place + 1) * width) })) };
  });
}

const shown = (value) => (typeof value === "string" && value.length > 60 ? `${value.slice(0, 12)}…` : value);

/** 16-bit numbers, the low byte first, as text. */
function base64(parts) {
  let bytes = "";
  for (const part of parts) for (const half of part) bytes += String.fromCharCode(half & 255, half >> 8);
  return btoa(bytes);
}

function halvesIn(text) {
  const bytes = atob(text);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, k) => bytes.charCodeAt(2 * k) | (bytes.charCodeAt(2 * k + 1) << 8));
}
