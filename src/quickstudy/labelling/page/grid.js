// Many photos at once: those that the head takes for one class, the surest first, or those like one photo, or those
// that have a label. A sweep over tiles selects them; with nothing selected, all are meant. Where a photo may have several
// labels, a tile shows all that it would be given, keys switch labels on the selected tiles, and what was changed so
// counts as looked at.

import * as server from "./server.js";
import { asWords, at, classButtons, counted, dot, inOrder, make, paint, say, several, sure, tile, toggle } from "./common.js";

const COUNT = 48;
let view = { view: "suggested", class: "" };
let like = null;
let photos = [];
let total = 0;
let chosen = new Set();
let drafts = new Map(); // labels of the tiles on which some were switched, by photo
let drawClasses = () => {};
let asked = 0;
let loadedAt = "";
let sweeping = null;
let focused = 0;

const suggested = () => view.view === "suggested";

/** Shows photos like one. */
export function showLike(photo) {
  like = photo;
  view = { view: "alike", to: photo.id };
  load();
}

export async function load() {
  if (!server.state) return;
  const named = server.state.classes.some((one) => one.name === view.class);
  if (suggested() && !named) view.class = [...server.state.classes].sort((a, b) => b.waiting - a.waiting)[0]?.name || "";
  drawGroups();
  const mine = ++asked;
  const query = { ...view, count: COUNT, ...(suggested() ? { least: at("least").value / 100 } : {}) };
  const answer = suggested() && !view.class ? { photos: [], total: 0 } : await server.list(query);
  if (mine !== asked) return;
  ({ photos, total } = answer);
  chosen = new Set();
  drafts = new Map();
  focused = 0;
  loadedAt = state();
  const tiles = photos.map((photo) => tile(photo, caption(photo)));
  at("tiles").replaceChildren(...tiles);
  if (tiles.length) tiles[0].tabIndex = 0;
  draw();
  await paint(tiles, photos.map((photo) => photo.id));
}

const state = () => JSON.stringify([view, at("least").value]);
// The labels that a photo would be given, where there may be several.
const draftOf = (photo) => drafts.get(photo.id) || new Set(photo.labels || photo.given);

function caption(photo) {
  if (several()) return photo.labels || photo.guess.length || drafts.has(photo.id) ? asWords(inOrder(draftOf(photo))) : "";
  if (view.view === "labelled") return (photo.labels || []).join("");
  return photo.guess.length ? `${suggested() ? "" : `${photo.guess[0][0]} `}${sure(photo.guess[0][1])}` : "";
}

function drawGroups() {
  const groups = server.state.classes.map((one, number) => ({ to: { view: "suggested", class: one.name }, name: one.name, number, n: one.waiting }));
  const others = [
    ...(like ? [{ to: { view: "alike", to: like.id }, name: `Like ${like.name.split("/").pop()}` }] : []),
    { to: { view: "skipped" }, name: "Skipped" }, { to: { view: "none" }, name: "None of these" },
  ];
  const button = ({ to, name, number, n }) => make("button", {
    type: "button", class: "group", "aria-pressed": String(JSON.stringify(to) === JSON.stringify(view)), onclick: () => { view = to; load(); },
  }, ...(number === undefined ? [] : [dot(number)]), make("bdi", {}, name), ...(n === undefined ? [] : [make("span", { class: "quiet" }, n.toLocaleString("en"))]));
  const labelled = make("select", { "aria-label": "Photos that have a label" }, make("option", { value: "" }, "Labelled …"),
    ...server.state.classes.filter((one) => one.labels).map((one) => make("option", { value: one.name, selected: view.view === "labelled" && view.class === one.name }, `${one.name} (${one.labels})`)));
  labelled.addEventListener("change", () => { if (labelled.value) { view = { view: "labelled", class: labelled.value }; load(); } });
  at("grid-groups").replaceChildren(...groups.map(button), ...others.map(button), labelled);
  at("least-label").hidden = !suggested();
}

function draw() {
  for (const element of at("tiles").children) {
    element.setAttribute("aria-selected", String(chosen.has(element.dataset.id)));
    element.classList.toggle("changed", drafts.has(element.dataset.id));
  }
  const few = chosen.size;
  const names = { suggested: `taken for ${view.class}`, alike: "most like it", labelled: `labelled ${view.class}`, none: "that are none of these", skipped: "that were skipped" };
  at("grid-title").textContent = photos.length
    ? `${few ? `${few} selected of ` : ""}${counted(total, "photo")} ${names[view.view]}`
    : suggested() && server.state.classes.length < 2 ? "Label a few photos of two classes first; then suggestions come." : "There are none.";
  const rest = accepted().length;
  at("accept").hidden = several() ? !rest : !suggested() || !photos.length;
  const as = several() ? (suggested() ? " with these labels" : "") : ` as ${view.class}`;
  at("accept").textContent = !suggested() ? `Save the ${counted(rest, "photo")} that you changed` : few ? `Accept the other ${rest}${as}` : `Accept these ${rest}${as}`;
  at("select-all").hidden = !photos.length;
  at("select-all").textContent = few === photos.length && few ? "Select none" : "Select all";
  if (several()) drawClasses();
  at("grid-more").textContent = total > photos.length ? `${counted(total - photos.length, "more photo")} after these.` : "";
}

// What Enter says something of: of the suggested ones, all but those that are selected and not changed, else the changed.
const accepted = () => photos.filter((photo) => drafts.has(photo.id) || (suggested() && !chosen.has(photo.id)));

// Gives each group of photos its labels.
async function give(groups) {
  const those = groups.flatMap(([photosOf]) => photosOf);
  if (!those.length) return;
  const ids = new Set(those.map((photo) => photo.id));
  say(groups.map(([photosOf, names]) => `${asWords(names)}: ${counted(photosOf.length, "photo")}.`).join(" "));
  const left = photos.filter((photo) => !ids.has(photo.id));
  for (const element of [...at("tiles").children]) if (ids.has(element.dataset.id)) element.classList.add("gone");
  photos = left;
  chosen = new Set();
  await Promise.all(groups.map(([photosOf, names]) => server.act(names.length ? "label" : "none", photosOf, names, "grid")));
  await load();
}

const selection = () => photos.filter((photo) => chosen.has(photo.id));
const meant = () => (chosen.size ? selection() : photos.filter((_, place) => place === focused));
export function accept() {
  if (!several()) {
    if (suggested()) give([[accepted(), [view.class]]]);
    return;
  }
  const groups = new Map();
  for (const photo of accepted()) {
    const names = inOrder(draftOf(photo));
    const key = names.join("\n");
    if (!groups.has(key)) groups.set(key, [[], names]);
    groups.get(key)[0].push(photo);
  }
  give([...groups.values()]);
}
/** Gives photos this class, or switches the label on all of them, or off where all have it. */
export function label(name) {
  const those = meant();
  if (!several()) {
    give([[those, [name]]]);
    return;
  }
  const off = those.length > 0 && those.every((photo) => draftOf(photo).has(name));
  for (const photo of those) {
    const draft = draftOf(photo);
    if (draft.has(name) === off) drafts.set(photo.id, toggle(draft, name));
    const element = at("tiles").querySelector(`[data-id="${photo.id}"]`);
    element.querySelector(".caption bdi").textContent = caption(photo);
    element.setAttribute("aria-label", `${photo.name}, ${caption(photo)}`);
  }
  draw();
  say(`${name} is ${off ? "off" : "on"}: ${counted(those.length, "photo")}.`);
}
// The labels that all photos have which a key would change.
function common() {
  const those = meant();
  return new Set(those.length ? inOrder(draftOf(those[0])).filter((name) => those.every((photo) => draftOf(photo).has(name))) : []);
}

export function begin() {
  drawClasses = classButtons(at("grid-classes"), (name) => (meant().length ? label(name) : server.addClass(name)), common);
  at("accept").addEventListener("click", accept);
  at("least").addEventListener("input", () => { at("least-value").textContent = `${at("least").value} %`; });
  at("least").addEventListener("change", load);
  at("select-all").addEventListener("click", () => {
    chosen = chosen.size === photos.length ? new Set() : new Set(photos.map((photo) => photo.id));
    draw();
  });
  const tiles = at("tiles");
  const over = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest("#tiles .tile");
  const set = (element, on) => {
    if (on) chosen.add(element.dataset.id);
    else chosen.delete(element.dataset.id);
    element.setAttribute("aria-selected", String(on));
  };
  tiles.addEventListener("pointerdown", (event) => {
    const element = over(event);
    if (!element || event.button) return;
    sweeping = { on: !chosen.has(element.dataset.id), x: event.clientX, y: event.clientY, touch: event.pointerType === "touch" };
    if (!sweeping.touch) event.preventDefault();
    set(element, sweeping.on);
    focusTile([...tiles.children].indexOf(element));
    draw();
  });
  tiles.addEventListener("pointermove", (event) => {
    if (!sweeping) return;
    const element = over(event);
    if (element) { set(element, sweeping.on); draw(); }
  });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => { sweeping = null; });
}

function focusTile(place) {
  const all = at("tiles").children;
  if (!all.length) return;
  focused = Math.max(0, Math.min(place, all.length - 1));
  for (const element of all) element.tabIndex = -1;
  all[focused].tabIndex = 0;
  all[focused].focus();
  if (several()) drawClasses();
}

export function key(event) {
  const all = [...at("tiles").children];
  const across = all.length ? Math.max(1, all.filter((element) => element.offsetTop === all[0].offsetTop).length) : 1;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -Infinity, End: Infinity };
  const inTiles = document.activeElement?.closest?.("#tiles");
  if (event.key in moves && (inTiles || document.activeElement === document.body || document.activeElement === at("work"))) {
    focusTile(inTiles ? focused + moves[event.key] : 0);
  } else if (event.key === " " && inTiles) {
    const id = all[focused].dataset.id;
    if (chosen.has(id)) chosen.delete(id);
    else chosen.add(id);
    draw();
  } else if (event.key === "Enter") accept();
  else if (event.key.toLowerCase() === "n") give([[meant(), []]]);
  else return false;
  return true;
}

/** Follows the state: new classes, and photos where there were none. */
export function update() {
  drawClasses();
  drawGroups();
  if (!photos.length || loadedAt !== state()) load();
}
