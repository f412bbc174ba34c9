// The page: loads the model, takes photos from files and the camera, shows the classes' probabilities.

import * as ort from "./ort.wasm.min.mjs";
import { decode } from "./decoding.js";
import { toInput } from "./pixels.js";

const SHOWN = 5;
const element = (id) => document.getElementById(id);

async function open() {
  const spec = await (await fetch("model.json")).json();
  document.title = spec.title;
  const model = await (await fetch("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(model));
  /** Probabilities of a photo (Blob), or of anything that can be drawn, in the order of the classes. */
  return async function classify(source) {
    const pixels = toInput(await decode(source, spec), spec);
    const image = new ort.Tensor("uint8", pixels, [1, spec.size, spec.size, 3]);
    const { probabilities } = await session.run({ image });
    return spec.classes.map((name, number) => ({ name, probability: probabilities.data[number] }));
  };
}

const opened = open();
window.quickstudy = { classify: async (source) => (await opened)(source) };

function say(text) {
  element("status").textContent = text;
}

async function show(source, address) {
  say("Looking …");
  element("picture").src = address;
  element("figure").hidden = false;
  element("results").replaceChildren();
  try {
    const ranked = (await window.quickstudy.classify(source)).sort((a, b) => b.probability - a.probability);
    for (const { name, probability } of ranked.slice(0, SHOWN)) {
      const [item, label, share, bar, filled] = ["li", "span", "span", "div", "i"].map((tag) => document.createElement(tag));
      label.textContent = name;
      share.textContent = `${(100 * probability).toFixed(1)} %`;
      bar.className = "bar";
      filled.style.width = `${100 * probability}%`;
      bar.append(filled);
      item.append(label, share, bar);
      element("results").append(item);
    }
    element("results-heading").hidden = false;
    say(`Most likely: ${ranked[0].name}.`);
  } catch (error) {
    element("results-heading").hidden = true;
    say(error.message);
  }
}

function showFile(file) {
  if (!file) return;
  URL.revokeObjectURL(element("picture").src);
  show(file, URL.createObjectURL(file));
}

let stream = null;

function switchCamera(on) {
  for (const id of ["video", "shoot", "stop"]) element(id).hidden = !on;
  element("camera").hidden = on;
  if (!on) {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    element("camera").focus();
  } else {
    element("shoot").focus();
  }
}

element("camera").addEventListener("click", async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    say("The camera cannot be used: it is missing, busy or not allowed. Pages need https or localhost for it.");
    return;
  }
  element("video").srcObject = stream;
  await element("video").play();
  switchCamera(true);
});
element("stop").addEventListener("click", () => switchCamera(false));
element("shoot").addEventListener("click", () => {
  const video = element("video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(video, 0, 0);
  canvas.toBlob((blob) => show(canvas, URL.createObjectURL(blob)));
});
element("file").addEventListener("change", () => showFile(element("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") showFile(event.dataTransfer.files[0]);
  });
}

try {
  await opened;
  say("Ready.");
  element("file").disabled = false;
  element("camera").disabled = !navigator.mediaDevices;
} catch (error) {
  say(`The model cannot be loaded: ${error.message}`);
}
