// What the views share: making elements, the classes with their keys and colours, tiles of thumbnails.

import { at, counted, make } from "./elements.js";
import * as server from "./server.js";

export { at, counted, make };

export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
/** A probability that the head gives: it is never certain. */
export const sure = (share) => (share < 0.995 ? percent(share) : "> 99\u00a0%");
/** Tells a screen reader what has happened. */
export const say = (text) => { at("said").textContent = text; };

// U, N and M have a meaning of their own.
export const KEYS = [..."123456789abcdefghijklopqrstvwxyz"];
export const keyOf = (number) => KEYS[number] || "";
const dark = matchMedia("(prefers-color-scheme: dark)");
/** The colour of a class, by its number: neighbours differ most. */
export const colour = (number) => `oklch(${dark.matches ? 0.76 : 0.6} 0.145 ${(25 + number * 137.5) % 360})`;
export const onColours = (listener) => dark.addEventListener("change", listener);
export const classNumber = (name) => server.state.classes.findIndex((one) => one.name === name);
export function dot(number) {
  const mark = make("i", { class: "dot", "aria-hidden": "true" });
  mark.style.backgroundColor = number < 0 ? "transparent" : colour(number);
  return mark;
}

/** Fills a place with a button for each class and a field for a new one; `choose` is called with a name. */
export function classButtons(place, choose) {
  let shown = null;
  const field = make("input", { type: "text", maxlength: 80, autocomplete: "off", spellcheck: "false", "aria-label": "New class", placeholder: "New class …" });
  const form = make("form", { class: "new-class" }, make("kbd", { "aria-hidden": "true" }, "+"), field, make("button", { type: "submit", class: "add" }, "Add"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = field.value.trim();
    if (!name) return;
    field.value = "";
    field.blur();
    choose(name);
  });
  field.addEventListener("keydown", (event) => { if (event.key === "Escape") field.blur(); if (event.key === "+" && !field.value) event.preventDefault(); });
  const buttons = make("div", { class: "class-buttons" });
  place.replaceChildren(buttons, form);
  return function draw() {
    const names = server.state.classes.map((one) => one.name);
    const now = JSON.stringify([names, dark.matches]);
    place.classList.toggle("empty", !names.length);
    field.placeholder = names.length ? "New class …" : "What is this? Type a name …";
    if (now === shown) return;
    shown = now;
    buttons.replaceChildren(...names.map((name, number) => make("button", {
      type: "button", class: "class", "aria-keyshortcuts": keyOf(number).toUpperCase() || null, onclick: () => choose(name),
    }, make("kbd", {}, keyOf(number).toUpperCase() || "·"), dot(number), make("bdi", {}, name))));
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
