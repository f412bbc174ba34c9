// One photo at a time: the photo, why it is asked for, what the head takes it for, and keys that answer. Where a photo may
// have several labels, what is suggested is switched on, keys switch labels on and off, and Enter says those that are on.

import * as server from "./server.js";
import { asMarks, asWords, at, classButtons, classNumber, counted, dot, inOrder, keyOf, make, say, several, sure, toggle } from "./common.js";

const AHEAD = 5; // pictures that are fetched before they are needed
let queue = []; // photos to ask, the first being shown
let shown = null;
let draft = new Set(); // labels that are switched on, where there may be several
let begun = false;
const answered = new Map(); // photos answered here that a state on its way may still ask for, with the time
const FORGET_MS = 5000;
let drawClasses = () => {};
let moreLike = () => {};

const REASONS = {
  check: () => "Drawn at random, as a check",
  typical: (photo) => `Typical of ${counted(photo.alike, "photo")}`,
  between: (photo) => `Between ${photo.of[0]} and ${photo.of[1]}`,
  whether: (photo) => `${photo.of[0]} or not?`,
  few: (photo) => `Perhaps ${photo.of[0]}, of which there are few`,
  unlike: () => "Unlike all that have a label",
  any: (photo) => (photo.of.length ? `Probably ${photo.of[0]}` : "The next in line"),
};

/** Takes new questions from a state; what is being looked at stays. */
export function update(state) {
  drawClasses();
  if (!begun && !state.classes.length && document.activeElement === document.body) at("one-classes").querySelector("input").focus();
  begun = true;
  const now = performance.now();
  for (const [id, when] of answered) if (now - when > FORGET_MS && !server.unsaved) answered.delete(id);
  const fresh = state.next.filter((photo) => !answered.has(photo.id));
  const news = shown && state.shown && state.shown.id === shown.id ? state.shown : null;
  queue = [...(shown ? [shown] : []), ...fresh.filter((photo) => !shown || photo.id !== shown.id)];
  if (!shown) next();
  else if (news) {
    shown.seen = news.seen;
    if (shown.reason !== "check" && !shown.guess.length && news.guess.length) { // never changed under somebody's finger
      shown.guess = news.guess;
      drawSuggestion();
    }
  }
  prefetch();
  at("undo").disabled = !state.undo;
}

function prefetch() {
  for (const photo of queue.slice(0, AHEAD)) server.picture(photo.id).catch(() => {});
}

function next() {
  queue = queue.filter((photo) => !answered.has(photo.id));
  show(queue[0] || null);
  prefetch();
}

function show(photo) {
  shown = photo;
  draft = new Set(photo && several() ? photo.given : []);
  drawClasses();
  at("one").classList.toggle("done", !photo);
  at("reason").textContent = photo ? REASONS[photo.reason || "any"](photo) : "";
  at("reason").classList.toggle("check", Boolean(photo && photo.reason === "check"));
  at("name").textContent = photo ? photo.name : "";
  drawSuggestion();
  if (!photo) {
    const all = server.state && server.state.answered >= server.state.total;
    at("picture").replaceChildren(make("p", { class: "nothing" }, all ? "Every photo has an answer." : "The next photos are on their way …"));
    return;
  }
  const place = at("picture");
  server.picture(photo.id).then((image) => {
    if (shown !== photo) return;
    image.alt = `Photo ${photo.name}`;
    place.replaceChildren(image);
    place.dataset.id = photo.id;
  }, (error) => {
    if (shown !== photo) return;
    place.replaceChildren(make("p", { class: "nothing" }, `This photo cannot be shown: ${error.message}`));
    if (error.status === 422) setTimeout(() => { if (shown === photo) { answered.set(photo.id, performance.now()); shown = null; next(); } }, 1200);
  });
}

function drawSuggestion() {
  if (shown && several()) {
    drawDraft();
    return;
  }
  const guess = shown ? shown.guess : [];
  const place = at("suggestion");
  if (!guess.length) {
    const words = !shown || !server.state || server.state.classes.length < 2 ? ""
      : shown.reason === "check" ? "No suggestion, so that it does not lead you" : "No suggestion yet";
    place.replaceChildren(make("p", { class: "quiet" }, words));
    return;
  }
  const [name, share] = guess[0];
  const best = make("button", { type: "button", id: "take", class: "primary suggestion", "aria-keyshortcuts": "Enter", onclick: accept },
    make("kbd", {}, "Enter"), make("bdi", {}, name), make("span", { class: "share" }, sure(share)));
  place.replaceChildren(best, ...guess.slice(1).filter(([, p]) => p >= 0.05).map(other));
}

const other = ([name, share]) => make("span", { class: "other" },
  make("kbd", {}, keyOf(classNumber(name)).toUpperCase()), dot(classNumber(name)), make("bdi", {}, name), ` ${sure(share)}`);

// A check with nothing on: Enter is no answer, lest none of these be said in haste; N says so.
const mustChoose = () => shown.reason === "check" && !draft.size;

// What Enter would say, and what else may be in the photo.
function drawDraft() {
  at("answer").classList.add("several");
  const names = inOrder(draft);
  const best = mustChoose() ? [] : [make("button", { type: "button", id: "take", class: "primary suggestion", "aria-keyshortcuts": "Enter", onclick: accept },
    make("kbd", {}, "Enter"), make("bdi", {}, asWords(names)))];
  const words = shown.reason === "check" ? [make("p", { class: "quiet" }, "No suggestion, so that it does not lead you")] : [];
  at("suggestion").replaceChildren(...best, ...words, ...shown.guess.filter(([name, p]) => p >= 0.05 && !draft.has(name)).map(other));
}

function answer(kind, names = []) {
  const photo = shown;
  if (!photo) return;
  performance.mark("answered");
  answered.set(photo.id, performance.now());
  shown = null;
  next();
  const told = kind === "skip" ? "Skipped." : `${asWords(names)}.`;
  const following = shown ? ` Next: ${shown.name}. ${at("reason").textContent}.${suggestion()}` : "";
  say(told + following);
  server.act(kind, [photo], names, "one").catch((error) => {
    answered.delete(photo.id);
    say(`That was refused: ${error.message}`);
    complain(error.message);
  });
}

function suggestion() {
  if (!shown.guess.length) return "";
  return several() ? ` Suggestion: ${asWords(shown.given)}.` : ` Suggestion: ${shown.guess[0][0]}, ${sure(shown.guess[0][1])}.`;
}

function complain(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = false;
}

export const shownName = () => (shown ? shown.id : "");
/** Gives the photo this class, or switches the label on or off. */
export function label(name) {
  if (!several()) {
    answer("label", [name]);
    return;
  }
  if (!shown) return;
  toggle(draft, name);
  drawClasses();
  drawSuggestion();
  say(`${name} ${draft.has(name) ? "is on" : "is off"}. ${mustChoose() ? "N" : "Enter"} says: ${asWords(inOrder(draft))}.`);
}
/** Says what is suggested, or the labels that are on; of a check, nothing that was not chosen. */
export function accept() {
  if (!shown) return;
  if (several()) {
    if (mustChoose()) say("Nothing is on. N says: None of these.");
    else answer("label", inOrder(draft));
  }
  else if (shown.guess.length) label(shown.guess[0][0]);
}
export const skip = () => answer("skip");
export const none = () => answer("none");
export const more = () => { if (shown) moreLike(shown); };

/** Takes back what was done last, and shows it again. */
export async function undo() {
  const answerOf = await server.undo();
  if (!answerOf.number) {
    say("There is nothing to undo.");
    return;
  }
  const names = answerOf.names;
  const what = names.length ? names.join(" + ") : answerOf.kind === "none" ? "none of these" : answerOf.kind;
  say(`Taken back: ${what}, ${counted(answerOf.count, "photo")}${answerOf.own ? "" : ", of another window"}.`);
  for (const id of answerOf.photos) answered.delete(id);
  if (answerOf.count === 1) {
    const { photos } = await server.list({ view: "some", ids: answerOf.photos.join(",") });
    const asked = photos[0].check ? { reason: "check", guess: [] } : { reason: "any" };
    const again = { of: [], alike: 0, ...photos[0], ...asked, ...(several() ? { given: names } : {}) };
    queue = [again, ...queue.filter((photo) => photo.id !== again.id)];
    show(again);
    at("reason").textContent = `Taken back: it was ${what}`;
  }
}

/** Sets the view up; `like` is called with a photo to find more like it. */
export function begin(like) {
  moreLike = like;
  drawClasses = classButtons(at("one-classes"), label, () => draft);
  at("skip").addEventListener("click", skip);
  at("none").addEventListener("click", none);
  at("undo").addEventListener("click", undo);
  at("more").addEventListener("click", more);
}

/** Answers a key; says whether it meant something. */
export function key(event) {
  const pressed = event.key.toLowerCase();
  if (pressed === "enter") accept();
  else if (pressed === " ") skip();
  else if (pressed === "n") none();
  else if (pressed === "m") more();
  else return false;
  return true;
}
export const redraw = () => { drawClasses(); drawSuggestion(); };
