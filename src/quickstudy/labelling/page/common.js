// What the views share: making elements, the classes with their keys and colours, tiles of thumbnails.

import { at, counted, make, percent as percentOf, sure as sureOf } from "./elements.js";
import * as server from "./server.js";

export { at, counted, make };

/** Shares and probabilities in whole percent. */
export const percent = (share) => percentOf(share, 0);
export const sure = (share) => sureOf(share, 0);
/** Tells a screen reader what has happened. */
export const say = (text) => { at("said").textContent = text; };

// U, N and M have a meaning of their own.
export const KEYS = [..."123456789abcdefghijklopqrstvwxyz"];
export const keyOf = (number) => KEYS[number] || "";
const dark = matchMedia("(prefers-color-scheme: dark)");
/** The colour of a class, by its number: neighbours differ most. */
export const colour = (number) => `oklch(${dark.matches ? 0.76 : 0.6} 0.145 ${(25 + number * 137.5) % 360})`;
export const onColours = (listener) => dark.addEventListener("change", listener);

/** Whether a photo may have several labels: then keys switch labels on and off, and Enter says them. */
export const several = () => server.state.several;
let typed = []; // labels that were typed for a photo and have not been said of one yet
/** The names of all labels, in the order of their keys. */
export function allNames() {
  const known = server.state.classes.map((one) => one.name);
  typed = typed.filter((name) => !known.includes(name));
  return [...known, ...typed];
}
/** Switches a label on or off in a set; one that was typed and is in no set any more is forgotten. */
export function toggle(names, name) {
  if (names.delete(name)) typed = typed.filter((other) => other !== name);
  else {
    names.add(name);
    if (!allNames().includes(name)) typed.push(name);
  }
  return names;
}
/** Names in the order of their keys. */
export const inOrder = (names) => allNames().filter((name) => names.has(name));
/** Names of labels as words: what a photo has, or that it has none of them. */
export const asWords = (names) => [...names].join(" + ") || "None of these";
/** Names of labels as elements. */
export const asMarks = (names) => [...names].flatMap((name) => [dot(classNumber(name)), make("bdi", {}, name)]);
export const classNumber = (name) => allNames().indexOf(name);
export function dot(number) {
  const mark = make("i", { class: "dot", "aria-hidden": "true" });
  mark.style.backgroundColor = number < 0 ? "transparent" : colour(number);
  return mark;
}

/**
 * Fills a place with a button for each class and a field for a new one; `choose` is called with a name. Where a photo may
 * have several labels, `chosen` gives those that are switched on.
 */
export function classButtons(place, choose, chosen = () => new Set()) {
  let shown = null;
  const field = make("input", { type: "text", maxlength: 80, autocomplete: "off", spellcheck: "false", "aria-label": "New class", placeholder: "New class …" });
  const form = make("form", { class: "new-class" }, make("kbd", { "aria-hidden": "true" }, "+"), field, make("button", { type: "submit", class: "add" }, "Add"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = field.value.trim();
    if (!name) return;
    const mark = server.state.separators.find((one) => name.includes(one));
    field.setCustomValidity(mark ? `“${mark}” stands between labels; name them one by one` : "");
    if (!field.reportValidity()) return;
    field.value = "";
    field.blur();
    choose(name);
  });
  field.addEventListener("input", () => field.setCustomValidity(""));
  field.addEventListener("keydown", (event) => { if (event.key === "Escape") field.blur(); if (event.key === "+" && !field.value) event.preventDefault(); });
  const buttons = make("div", { class: "class-buttons" });
  place.replaceChildren(buttons, form);
  return function draw() {
    const names = allNames();
    const now = JSON.stringify([names, dark.matches]);
    place.classList.toggle("empty", !names.length);
    const what = several() ? "label" : "class";
    field.setAttribute("aria-label", `New ${what}`);
    field.placeholder = names.length ? `New ${what} …` : several() ? "What is in it? Type a name …" : "What is this? Type a name …";
    if (now !== shown) {
      shown = now;
      buttons.replaceChildren(...names.map((name, number) => make("button", {
        type: "button", class: "class", "aria-keyshortcuts": keyOf(number).toUpperCase() || null, onclick: () => choose(name),
      }, make("kbd", {}, keyOf(number).toUpperCase() || "·"), dot(number), make("bdi", {}, name))));
    }
    if (!several()) return;
    const on = chosen();
    names.forEach((name, number) => buttons.children[number].setAttribute("aria-pressed", String(on.has(name))));
  };
}

/** A tile with a photo's thumbnail; the place on its sheet is filled in by `paint`. */
export function tile(photo, caption) {
  const image = make("span", { class: "thumb" });
  return make("div", { class: "tile", role: "option", "aria-selected": "false", tabindex: "-1", "data-id": photo.id, "aria-label": `${photo.name}${caption ? `, ${caption}` : ""}` },
    image, make("span", { class: "caption", "aria-hidden": "true" }, make("bdi", {}, caption || "")));
}

const ACROSS = 8;
/** Shows thumbnails on tiles, of one sheet for all; `freed` collects addresses to let go of later. */
export async function paint(tiles, ids) {
  if (!ids.length) return;
  const url = await server.sheet(ids);
  const across = Math.min(ACROSS, ids.length);
  tiles.forEach((element, place) => {
    const thumb = element.querySelector(".thumb");
    thumb.style.backgroundImage = `url(${url})`;
    thumb.style.backgroundSize = `${100 * across}% auto`;
    const down = Math.ceil(ids.length / ACROSS);
    const x = across > 1 ? (100 * (place % ACROSS)) / (across - 1) : 0;
    const y = down > 1 ? (100 * Math.floor(place / ACROSS)) / (down - 1) : 0;
    thumb.style.backgroundPosition = `${x}% ${y}%`;
  });
  setTimeout(() => URL.revokeObjectURL(url), 60000); // the pictures are decoded by then
}
