// Labels to look at again: what two people contradict each other about, and what is probably a mistake.

import * as server from "./server.js";
import { asMarks, asWords, at, make, paint, say, several, tile } from "./common.js";

let shown = "";

async function settle(photo, names, card) {
  card.classList.add("gone");
  say(`${asWords(names)}: ${photo.name}.`);
  await server.act(names.length ? "label" : "none", [photo], names, "review");
  shown = "";
}

// What a button says: labels, with a word before them; or that there are none.
function choice(names, before) {
  if (names.length) return before ? [before, ...asMarks(names)] : asMarks(names);
  const none = several() ? "None of these is in it" : asWords(names);
  return [before === "No," ? `No, ${none[0].toLowerCase()}${none.slice(1)}` : none];
}

function card(photo, words, choices) {
  const picture = tile(photo, "");
  picture.removeAttribute("role");
  picture.removeAttribute("aria-selected");
  picture.removeAttribute("tabindex");
  picture.setAttribute("role", "img");
  const item = make("li", { class: "card" }, picture);
  const unlike = choices.filter(([names], place) => choices.findIndex(([other]) => asWords(other) === asWords(names)) === place);
  const buttons = unlike.map(([names, before], place) => make("button", { type: "button", class: place ? "" : "primary", onclick: () => settle(photo, names, item) }, ...choice(names, before)));
  item.append(make("div", { class: "words" }, make("p", { class: "quiet file" }, make("bdi", {}, photo.name)), make("p", {}, words), make("div", { class: "acts" }, ...buttons)));
  return item;
}

async function fill(place, view, toCard, nothing) {
  const { photos } = await server.list({ view, count: 24 });
  const cards = photos.map(toCard);
  place.replaceChildren(...cards, ...(cards.length ? [] : [make("li", { class: "quiet" }, nothing)]));
  await paint(cards, photos.map((photo) => photo.id));
}

function mistake({ labels, suggested }) {
  if (!several()) return `Labelled ${asWords(labels)}; without its own label, it would be taken for ${asWords(suggested)}.`;
  const missing = suggested.filter((name) => !labels.includes(name));
  const wrong = labels.filter((name) => !suggested.includes(name));
  return `Labelled ${asWords(labels)}.${missing.length ? ` Perhaps ${missing.join(" + ")} is missing.` : ""}${wrong.length ? ` Perhaps ${wrong.join(" + ")} is not there.` : ""}`;
}

export async function load() {
  await fill(at("conflicts"), "conflicts", (photo) => {
    const quoted = (text) => (several() ? `“${text}”` : text);
    const words = photo.said.map((one) => quoted(one.names.join(" + ") || one.kind));
    return card(photo, `Said to be ${words.join(" and ")}.`, [...photo.said.filter((one) => one.kind === "label").map((one) => [one.names]), [[]]]);
  }, "There are none.");
  await fill(at("mistakes"), "mistakes", (photo) => card(photo, mistake(photo),
    [[photo.suggested, "It is"], [photo.labels, "No,"], [[]]]), "There are none, as far as can be told.");
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
