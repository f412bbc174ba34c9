// Labels to look at again: what two people contradict each other about, and what is probably a mistake.

import * as server from "./server.js";
import { at, classNumber, dot, make, paint, say, tile } from "./common.js";

let shown = "";

async function settle(photo, kind, name, card) {
  card.classList.add("gone");
  say(`${kind === "label" ? name : "None of these"}: ${photo.name}.`);
  await server.act(kind, [photo], name, "review");
  shown = "";
}

function card(photo, words, choices) {
  const picture = tile(photo, "");
  picture.removeAttribute("role");
  picture.removeAttribute("aria-selected");
  picture.removeAttribute("tabindex");
  picture.setAttribute("role", "img");
  const item = make("li", { class: "card" }, picture);
  const buttons = choices.map(([name, text], place) => make("button", { type: "button", class: place ? "" : "primary", onclick: () => settle(photo, name === "" ? "none" : "label", name, item) },
    ...(name ? [dot(classNumber(name))] : []), make("bdi", {}, text)));
  item.append(make("div", { class: "words" }, make("p", { class: "quiet file" }, make("bdi", {}, photo.name)), make("p", {}, words), make("div", { class: "acts" }, ...buttons)));
  return item;
}

async function fill(place, view, toCard, nothing) {
  const { photos } = await server.list({ view, count: 24 });
  const cards = photos.map(toCard);
  place.replaceChildren(...cards, ...(cards.length ? [] : [make("li", { class: "quiet" }, nothing)]));
  await paint(cards, photos.map((photo) => photo.id));
}

export async function load() {
  await fill(at("conflicts"), "conflicts", (photo) => {
    const said = [...new Set(photo.said.filter((name) => name !== "none" && name !== "skip" && name !== "clear"))];
    return card(photo, `Said to be ${photo.said.join(" and ")}.`, [...said.map((name) => [name, name]), ["", "None of these"]]);
  }, "There are none.");
  await fill(at("mistakes"), "mistakes", (photo) => card(photo, `Labelled ${photo.label}; without its own label, it would be taken for ${photo.suggested}.`,
    [[photo.suggested, `It is ${photo.suggested}`], [photo.label, `No, ${photo.label}`], ["", "None of these"]]), "There are none, as far as can be told.");
}

export function update(state) {
  const now = JSON.stringify([state.mistakes, state.conflicts, state.labelled]);
  if (now === shown) return;
  shown = now;
  load().catch(() => { shown = ""; });
}
export const begin = () => {};
export const key = () => false;
export const label = () => {};
