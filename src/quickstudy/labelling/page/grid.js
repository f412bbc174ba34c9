// Many photos at once: those that the head takes for one class, the surest first, or those like one photo, or those
// that have a label. A sweep over tiles selects them; with nothing selected, all are meant.

import * as server from "./server.js";
import { at, classButtons, counted, dot, make, paint, say, sure, tile } from "./common.js";

const COUNT = 48;
let view = { view: "suggested", class: "" };
let like = null;
let photos = [];
let total = 0;
let chosen = new Set();
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
  focused = 0;
  loadedAt = state();
  const tiles = photos.map((photo) => tile(photo, caption(photo)));
  at("tiles").replaceChildren(...tiles);
  if (tiles.length) tiles[0].tabIndex = 0;
  draw();
  await paint(tiles, photos.map((photo) => photo.id));
}

const state = () => JSON.stringify([view, at("least").value]);
function caption(photo) {
  if (view.view === "labelled") return photo.label || "";
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
  for (const element of at("tiles").children) element.setAttribute("aria-selected", String(chosen.has(element.dataset.id)));
  const few = chosen.size;
  const names = { suggested: `taken for ${view.class}`, alike: "most like it", labelled: `labelled ${view.class}`, none: "that are none of these", skipped: "that were skipped" };
  at("grid-title").textContent = photos.length
    ? `${few ? `${few} selected of ` : ""}${counted(total, "photo")} ${names[view.view]}`
    : suggested() && server.state.classes.length < 2 ? "Label a few photos of two classes first; then suggestions come." : "There are none.";
  at("accept").hidden = !suggested() || !photos.length;
  const rest = photos.length - few;
  at("accept").textContent = few ? `Accept the other ${rest} as ${view.class}` : `Accept these ${photos.length} as ${view.class}`;
  at("select-all").hidden = !photos.length;
  at("select-all").textContent = few === photos.length && few ? "Select none" : "Select all";
  at("grid-more").textContent = total > photos.length ? `${counted(total - photos.length, "more photo")} after these.` : "";
}

async function give(kind, name, those) {
  if (!those.length) return;
  const ids = new Set(those.map((photo) => photo.id));
  say(`${kind === "label" ? name : kind === "none" ? "None of these" : "Taken away"}: ${counted(those.length, "photo")}.`);
  const left = photos.filter((photo) => !ids.has(photo.id));
  for (const element of [...at("tiles").children]) if (ids.has(element.dataset.id)) element.classList.add("gone");
  photos = left;
  chosen = new Set();
  await server.act(kind, those, name, "grid");
  await load();
}

const selection = () => photos.filter((photo) => chosen.has(photo.id));
const meant = () => (chosen.size ? selection() : photos.filter((_, place) => place === focused));
export const accept = () => { if (suggested()) give("label", view.class, photos.filter((photo) => !chosen.has(photo.id))); };
export const label = (name) => give("label", name, meant());

export function begin() {
  drawClasses = classButtons(at("grid-classes"), (name) => (meant().length ? label(name) : server.addClass(name)));
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
  else if (event.key.toLowerCase() === "n") give("none", "", meant());
  else return false;
  return true;
}

/** Follows the state: new classes, and photos where there were none. */
export function update() {
  drawClasses();
  drawGroups();
  if (!photos.length || loadedAt !== state()) load();
}
