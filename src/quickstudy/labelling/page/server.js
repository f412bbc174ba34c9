// What the page asks the server: the state, photos, and what people do. Acts are sent one after the other, again and
// again until they are acknowledged; each has a name, so one that arrives twice counts once.

const RETRY_MS = 1000;
const KEPT = 40; // pictures in memory

const hex = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
function remembered() {
  try {
    const known = localStorage.getItem("who") || hex(6);
    localStorage.setItem("who", known);
    return known;
  } catch {
    return hex(6); // storage is switched off
  }
}
/** The name by which this browser calls itself. */
export const who = remembered();

/** The newest state; null before there is one. */
export let state = null;
const listeners = [];
/** Calls a function with every new state, and with the trouble there is: null, "token" or "lost". */
export const onState = (listener) => listeners.push(listener);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, cache: "no-store" });
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Refused(response.status, answer.error || `status ${response.status}`);
  }
  return response;
}

/** Keeps asking for the state for as long as the page is open; `shown` gives the name of the photo that it shows. */
export async function follow(shown) {
  for (;;) {
    try {
      const since = state === null ? "" : state.version;
      state = await (await ask(`api/state?who=${who}&since=${since}&shown=${shown()}`)).json();
      for (const listener of listeners) listener(state, null);
    } catch (error) {
      for (const listener of listeners) listener(state, error.status === 401 ? "token" : "lost");
      await pause(RETRY_MS);
      if (state) state.version = ""; // the server may have begun anew
    }
  }
}

/** Number of acts that have not been acknowledged yet. */
export let unsaved = 0;
let last = Promise.resolve();
const counters = [];
/** Calls a function whenever the number of unsaved acts changes. */
export const onUnsaved = (listener) => counters.push(listener);
function count(change) {
  unsaved += change;
  for (const listener of counters) listener(unsaved);
}

/** Sends an act after those before it; resolves to the answer once it is on the server's disk. */
export function send(path, values) {
  const body = JSON.stringify({ ...values, who, key: hex(12) });
  const options = { method: "POST", body, headers: { "Content-Type": "application/json" } };
  const attempt = async () => {
    for (;;) {
      try {
        return await (await ask(path, options)).json();
      } catch (error) {
        if (error.status >= 400 && error.status < 500 && error.status !== 401 && error.status !== 408) throw error;
        await pause(RETRY_MS); // the server is away, or its disk is full
      }
    }
  };
  count(1);
  const result = last.then(attempt);
  last = result.catch(() => {}).then(() => count(-1));
  return result;
}

/** Says something of photos: kind is label, none, skip or clear; `names` are all labels that each of them has. */
export const act = (kind, photos, names, way) => send("api/act", {
  kind, photos: photos.map((photo) => photo.id), seen: photos.map((photo) => photo.seen), names, way,
});
export const addClass = (name) => send("api/act", { kind: "class", photos: [], seen: [], names: [name] });
export const undo = () => send("api/undo", {});
export const train = () => send("api/train", {});
/** Lists photos for the grid; see answers.py for the query. */
export const list = async (query) => (await ask(`api/photos?${new URLSearchParams(query)}`)).json();
export const map = async () => (await ask("api/map")).json();
export const tryOut = async (blob) => (await ask("api/try", { method: "POST", body: blob })).json();
export async function keep(blob, names) {
  const query = new URLSearchParams([["who", who], ...names.map((name) => ["name", name])]);
  return (await ask(`api/keep?${query}`, { method: "POST", body: blob })).json();
}

const pictures = new Map();
/** A photo as a decoded image element; asked for once, and kept for a while. */
export function picture(id) {
  if (!pictures.has(id)) {
    const load = async () => {
      const url = URL.createObjectURL(await (await ask(`photo/${id}`)).blob());
      const image = new Image();
      image.src = url;
      await image.decode();
      return image;
    };
    pictures.set(id, load());
    pictures.get(id).catch(() => pictures.delete(id));
    for (const [old, promise] of pictures) {
      if (pictures.size <= KEPT) break;
      pictures.delete(old);
      promise.then((image) => { if (!image.isConnected) URL.revokeObjectURL(image.src); }, () => {});
    }
  }
  return pictures.get(id);
}

/** The address of a sheet with the thumbnails of these photos. */
export async function sheet(ids) {
  return URL.createObjectURL(await (await ask(`sheet?photos=${ids.join(",")}`)).blob());
}
