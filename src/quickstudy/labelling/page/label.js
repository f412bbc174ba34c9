// The page: which view is shown, keys, progress, and the button that trains.

import * as server from "./server.js";
import { allNames, at, counted, KEYS, onColours, say } from "./common.js";
import * as grid from "./grid.js";
import * as knows from "./knows.js";
import * as map from "./map.js";
import * as one from "./one.js";
import * as review from "./review.js";
import * as trying from "./try.js";

const views = { one, grid, map, review, try: trying };
const current = () => (location.hash.slice(1) in views ? location.hash.slice(1) : "one");

function turn() {
  const name = current();
  for (const other of Object.keys(views)) at(other).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  at("frame").classList.toggle("wide", name === "map" || name === "grid");
  if (server.state) {
    views[name].update(server.state);
    if (name === "grid") grid.load();
  }
}

function update(state, trouble) {
  at("token-form").hidden = trouble !== "token";
  at("frame").hidden = trouble === "token";
  const note = at("trouble");
  if (trouble === "lost") note.textContent = "The server does not answer. What you do is kept here, and sent when it is back.";
  else if (state) note.textContent = state.trouble || (state.unusable.length ? `${counted(state.unusable.length, "photo")} cannot be used, e.g. ${state.unusable[0].name}: ${state.unusable[0].reason}` : "");
  note.hidden = !note.textContent;
  if (!state || trouble) return;
  at("title").textContent = state.title;
  document.title = `${state.title} – quickstudy label`;
  progress();
  at("progress-bar").value = state.total ? state.answered / state.total : 0;
  const open = state.mistakes + state.conflicts;
  at("to-review").hidden = !open;
  at("to-review").textContent = open;
  at("train").disabled = state.training.state === "running" || !state.can_train;
  at("train").textContent = state.training.state === "running" ? "Training …" : "Train";
  knows.update(state);
  one.update(state);
  if (current() !== "one") views[current()].update(state);
}

function progress() {
  const { state } = server;
  if (!state) return;
  at("progress-words").textContent = `${state.answered.toLocaleString("en")} of ${state.total.toLocaleString("en")}${server.unsaved ? `, saving ${server.unsaved}` : ""}`;
}

async function startTraining() {
  location.hash = "try";
  await server.train();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !server.state) return;
  const target = event.target;
  if (target.matches("input:not([type=range]), select, textarea")) return;
  const pressed = event.key.toLowerCase();
  // Buttons and links do what they say for Enter and Space.
  if ((pressed === "enter" || pressed === " ") && target.closest("button, a, summary, label")) return;
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  const view = views[current()];
  const number = KEYS.indexOf(pressed);
  let meant = true;
  if (pressed === "u") one.undo().then(() => { if (current() === "grid") grid.load(); if (current() === "map") map.load(); }, (error) => say(error.message));
  else if (pressed === "+" && target !== at("canvas") || pressed === "/") document.querySelector(`#${current()} .new-class input`)?.focus();
  else if (number >= 0 && !event.repeat) {
    const known = allNames()[number];
    if (known) view.label(known);
    else meant = false;
  } else meant = view.key(event);
  if (meant) event.preventDefault();
});

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  location.href = `./?${new URLSearchParams({ token: at("token").value.trim() })}`;
});
at("train").addEventListener("click", () => startTraining().catch((error) => say(error.message)));
addEventListener("hashchange", () => { turn(); at("work").focus({ preventScroll: true }); });
addEventListener("beforeunload", (event) => { if (server.unsaved) event.preventDefault(); });
onColours(() => { if (server.state) { knows.update(server.state); one.redraw(); } });
server.onState(update);
server.onUnsaved(progress);
one.begin((photo) => { grid.showLike(photo); location.hash = "grid"; });
for (const name of ["grid", "map", "review", "try"]) views[name].begin();
turn();
server.follow(one.shownName);
