"use strict";
// The page: photos from files, the clipboard or the camera go to /predict one by one, and what comes back is shown.

const at = (id) => document.getElementById(id);
const NEIGHBOURS = 6;
const SHOWN_CLASSES = 8;
const MOST_RESULTS = 100;

let models = [];
let token = sessionStorage.getItem("token") || "";
let stream = null;

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers }, cache: "no-store" });
  if (response.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
    throw new Error("this server takes a token");
  }
  return response;
}

// What is served, for the title, the choice of models and the note about thumbnails.
async function introduce() {
  const response = await ask("models");
  models = (await response.json()).models;
  at("token-form").hidden = true;
  const choice = at("model");
  const before = choice.value;
  choice.replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  if (models.some((model) => model.name === before)) choice.value = before;
  at("model-choice").hidden = models.length < 2;
  describe();
}

function describe() {
  const model = chosen();
  at("title").textContent = model.name;
  document.title = `${model.name} – quickstudy`;
  const accuracy = model.test && model.test.accuracy !== undefined
    ? ` Right on ${percent(model.test.accuracy)} of ${model.test.n} test images.` : "";
  const names = model.classes.length > 12 ? `${model.classes.slice(0, 12).join(", ")} and ${model.classes.length - 12} more`
    : model.classes.join(", ");
  at("about").textContent = `Tells ${model.classes.length} classes apart: ${names}.${accuracy}`;
  at("neighbours-note").textContent = model.neighbours
    ? "Thumbnails of the training images were kept; the nearest are shown."
    : "Thumbnails of the training images were not kept, so none are shown.";
}

const chosen = () => models.find((model) => model.name === at("model").value) || models[0];
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function classify(photos) {
  for (const photo of photos) {
    if (!models.length) await introduce();
    const model = chosen();
    say(`Looking at ${photo.name}…`);
    const query = model.neighbours ? `?neighbours=${NEIGHBOURS}` : "";
    const path = `models/${encodeURIComponent(model.name)}/predict${query}`;
    const response = await ask(path, { method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" } });
    const answer = await response.json();
    const prediction = answer.predictions ? answer.predictions[0] : { error: answer.error };
    show(photo, prediction);
    say(prediction.error ? `${photo.name}: ${prediction.error}`
      : `${photo.name}: ${prediction.label}, ${percent(prediction.probability)}`);
  }
}

function show(photo, prediction) {
  const result = at("result").content.cloneNode(true).firstElementChild;
  const picture = result.querySelector(".picture");
  picture.src = URL.createObjectURL(photo);
  picture.alt = photo.name;
  picture.onload = picture.onerror = () => URL.revokeObjectURL(picture.src);
  result.querySelector(".file").textContent = photo.name;
  result.classList.toggle("unusable", Boolean(prediction.error));
  result.querySelector("h2").textContent = prediction.error || `${prediction.label}, ${percent(prediction.probability)}`;
  result.querySelector(".classes").append(...(prediction.classes || []).slice(0, SHOWN_CLASSES).map(bar));
  const neighbours = prediction.neighbours || [];
  result.querySelector(".neighbours").hidden = !neighbours.length;
  result.querySelector(".neighbours ul").append(...neighbours.map(neighbour));
  at("results").prepend(result);
  while (at("results").children.length > MOST_RESULTS) at("results").lastElementChild.remove();
}

function bar({ label, probability }) {
  const row = document.createElement("li");
  const length = document.createElement("progress");
  length.max = 1;
  length.value = probability;
  length.setAttribute("aria-hidden", "true");
  const name = document.createElement("span");
  name.textContent = label;
  const share = document.createElement("span");
  share.textContent = percent(probability);
  row.append(length, name, share);
  return row;
}

function neighbour({ label, similarity, thumbnail }) {
  const item = document.createElement("li");
  const picture = document.createElement("img");
  picture.src = thumbnail;
  picture.alt = `training image of ${label}`;
  item.append(picture, label);
  item.title = `similarity ${similarity.toFixed(2)}`;
  return item;
}

const say = (text) => { at("status").textContent = text; };
const trouble = (error) => say(`That did not work: ${error.message}`);
const images = (list) => [...list].filter((file) => file.type === "" || file.type.startsWith("image/"));

async function startCamera() {
  // Browsers give the camera to secure pages only (https, or this machine's own address); phones take the other way.
  if (!navigator.mediaDevices) {
    at("capture").click();
    return;
  }
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  at("video").srcObject = stream;
  await at("video").play();
  at("camera").hidden = false;
  at("camera-start").hidden = true;
  at("camera-shoot").focus();
}

function stopCamera() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  at("video").srcObject = null;
  at("camera").hidden = true;
  at("camera-start").hidden = false;
  at("camera-start").focus();
}

async function shoot() {
  const canvas = document.createElement("canvas");
  canvas.width = at("video").videoWidth;
  canvas.height = at("video").videoHeight;
  canvas.getContext("2d").drawImage(at("video"), 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  await classify([new File([blob], "camera", { type: "image/jpeg" })]);
}

for (const id of ["files", "capture"]) {
  at(id).addEventListener("change", (event) => {
    const photos = [...event.target.files];
    event.target.value = "";
    classify(photos).catch(trouble);
  });
}
document.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  classify([...event.dataTransfer.files]).catch(trouble);
});
document.addEventListener("paste", (event) => { classify(images(event.clipboardData.files)).catch(trouble); });
at("camera-start").addEventListener("click", () => startCamera().catch(trouble));
at("camera-shoot").addEventListener("click", () => shoot().catch(trouble));
at("camera-stop").addEventListener("click", stopCamera);
at("model").addEventListener("change", describe);
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  sessionStorage.setItem("token", token);
  introduce().then(() => say("")).catch(trouble);
});
introduce().catch(trouble);
