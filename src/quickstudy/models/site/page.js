// The page: photos from files, the clipboard or the camera are classified one by one, and what comes back is shown.
// It has two homes, a server (`quickstudy serve`) and a static site (`quickstudy export --web`); what differs, the model
// behind it, is in each one's classifier.js.

import * as home from "./classifier.js";
import { at, counted, make, percent, sure } from "./elements.js";
import { takeIn } from "./intake.js";

const SHOWN_CLASSES = 8;
const MOST_RESULTS = 100;

let models = [];

// What there is, for the title, the choice of models and the note about photos.
async function introduce(wanted) {
  models = await home.models();
  at("token-form").hidden = true;
  const choice = at("model");
  const before = wanted || choice.value;
  choice.replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  if (models.some((model) => model.name === before)) choice.value = before;
  at("model-choice").hidden = models.length < 2;
  at("documentation").hidden = !home.documentation;
  at("documentation-link").href = home.documentation || "";
  describe();
}

async function begin() {
  await introduce();
  say("Ready.");
  // Only a static site can be taught.
  await home.begin?.((wanted) => introduce(wanted).catch(trouble));
}

function describe() {
  const model = chosen();
  at("title").textContent = model.name;
  document.title = `${model.name} – quickstudy`;
  const right = model.thresholds ? " All labels right" : " Right";
  const accuracy = model.test && model.test.accuracy !== undefined
    ? `${right} on ${percent(model.test.accuracy)} of ${counted(model.test.n, "test image")}.` : "";
  const names = model.classes.length > 12 ? `${model.classes.slice(0, 12).join(", ")} and ${model.classes.length - 12} more`
    : model.classes.join(", ");
  at("about").textContent = model.thresholds ? `Gives any of ${counted(model.classes.length, "label")}: ${names}.${accuracy}`
    : `Tells ${counted(model.classes.length, "class", "classes")} apart: ${names}.${accuracy}`;
  at("note").textContent = home.note(model);
  warn();
}

// Whether photos have come to look different from those that the model learned from; only a server knows.
async function watch() {
  if (!chosen().drift) return;
  models = await home.models();
  warn();
}

function warn() {
  const { drift } = chosen();
  at("drift").hidden = !(drift && drift.since);
  if (at("drift").hidden) return;
  const since = new Date(drift.since).toLocaleString("en-GB", { weekday: "long", day: "numeric", month: "long", hour: "2-digit", minute: "2-digit" });
  at("drift").textContent = `Since ${since}, the photos look different from those that the model learned from.`;
}

const chosen = () => models.find((model) => model.name === at("model").value) || models[0];
const says = ({ error, label, probability, none_of_these, labels }) => error
  || (labels && labels.length ? labels.join(", ") : "")
  || (labels ? `none of the labels (nearest: ${label}, ${sure(probability)})` : "")
  || (none_of_these ? `none of these (nearest: ${label}, ${sure(probability)})` : `${label}, ${sure(probability)}`);

async function classify(photos) {
  for (const photo of photos) {
    if (!models.length) await introduce();
    const model = chosen();
    say(`Looking at ${photo.name}…`);
    const prediction = await home.classify(photo, model);
    show(photo, prediction);
    say(`${photo.name}: ${says(prediction)}`);
  }
  await watch();
}

function show(photo, prediction) {
  const result = at("result").content.cloneNode(true).firstElementChild;
  const picture = result.querySelector(".picture");
  picture.src = URL.createObjectURL(photo);
  picture.alt = photo.name;
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
  result.querySelector(".file").textContent = photo.name;
  result.classList.toggle("unusable", Boolean(prediction.error));
  result.classList.toggle("strange", Boolean(prediction.none_of_these));
  result.querySelector("h2").textContent = says(prediction);
  const given = prediction.labels || [];
  const bars = (prediction.classes || []).filter(({ label }, place) => place < SHOWN_CLASSES || given.includes(label));
  result.querySelector(".classes").append(...bars.map((one) => bar(one, given.includes(one.label))));
  const neighbours = prediction.neighbours || [];
  result.querySelector(".neighbours").hidden = !neighbours.length;
  result.querySelector(".neighbours ul").append(...neighbours.map(neighbour));
  at("results").prepend(result);
  while (at("results").children.length > MOST_RESULTS) at("results").lastElementChild.remove();
}

function bar({ label, probability }, given) {
  return make("li", { class: given ? "given" : null },
    make("progress", { max: 1, value: probability, "aria-hidden": "true" }), make("span", {}, label), make("span", {}, sure(probability)));
}

function neighbour({ label, similarity, thumbnail }) {
  return make("li", { title: `similarity ${similarity.toFixed(2)}` }, make("img", { src: thumbnail, alt: `training image of ${label}` }), label);
}

const say = (text) => { at("status").textContent = text; };

function trouble(error) {
  if (error.name === "TokenError") {
    at("token-form").hidden = false;
    at("token").focus();
  }
  say(`That did not work: ${error.message}`);
}

takeIn(at("drop"), { take: classify, trouble, hint: "Drop or paste photos here", shoot: "Classify this picture" });
at("model").addEventListener("change", describe);
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  home.takeToken(at("token").value.trim());
  begin().catch(trouble);
});
begin().catch(trouble);
