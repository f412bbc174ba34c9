// The files that a site's one page carries: texts as they stand, all else compressed and in base64. Nothing is fetched.

/** The bytes of a file by its name. */
export async function bytesOf(name) {
  const place = document.querySelector(`script[data-file="${name}"]`);
  const packed = Uint8Array.from(atob(place.textContent), (letter) => letter.charCodeAt(0));
  place.remove(); // 20 MB of text that nobody reads again
  return new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

/** A file that is kept as text, by its name; null where there is none. */
export const textOf = (name) => document.querySelector(`script[data-text="${name}"]`)?.textContent ?? null;

/** The address of a text as a script of its own. */
export const asScript = (text) => URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
