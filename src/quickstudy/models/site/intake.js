// Where photos come from, on every page that takes some: chosen files, what is dropped or pasted, and the camera.

import { at, make } from "./elements.js";

let stream = null;

/** Fills a place with what takes photos in, and listens to what is dropped or pasted anywhere on the page.
 * take: gets Files, one or more; trouble: gets an error; hint, shoot: what the place and the camera's button say;
 * wanted: whether photos are wanted at this moment. */
export function takeIn(place, { take, trouble, hint, shoot, wanted = () => true }) {
  const given = (files) => Promise.resolve(take(files)).catch(trouble);
  const doing = (action) => () => action().catch(trouble);
  const chosen = (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) given(files);
  };
  place.replaceChildren(
    make("p", { class: "hint" }, hint),
    make("div", { class: "row" },
      make("label", { class: "button", for: "files" }, "Choose photos"),
      make("input", { id: "files", type: "file", accept: "image/*", multiple: true, class: "hidden-input", onchange: chosen }),
      make("button", { type: "button", id: "camera-start", onclick: doing(startCamera) }, "Use the camera"),
      make("input", { id: "capture", type: "file", accept: "image/*", capture: "environment", class: "hidden-input", tabindex: "-1", "aria-hidden": "true", onchange: chosen })),
    make("div", { id: "camera", hidden: true },
      make("video", { id: "video", playsinline: true, "aria-label": "The camera's picture" }),
      make("div", { class: "row" },
        make("button", { type: "button", id: "camera-shoot", class: "primary", onclick: doing(async () => take([await picture()])) }, shoot),
        make("button", { type: "button", id: "camera-stop", onclick: stopCamera }, "Camera off"))));
  at("video").muted = true;
  document.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.toggle("over", wanted()); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) place.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (wanted()) given([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => { if (wanted()) given(images(event.clipboardData.files)); });
}

/** Those of a list of Files that may be images. */
export const images = (list) => [...list].filter((file) => file.type === "" || file.type.startsWith("image/"));

/** Turns the camera on; says whether it is. Phones on pages that get none are led to their own camera. */
export async function startCamera() {
  // Browsers give the camera to secure pages only: https, this machine's own address, or a file of its own.
  if (!navigator.mediaDevices) {
    at("capture").click();
    return false;
  }
  if (stream) return true;
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  at("video").srcObject = stream;
  await at("video").play();
  at("camera").hidden = false;
  at("camera-start").hidden = true;
  at("camera-shoot").focus();
  return true;
}

/** The camera's picture as a File. */
export async function picture() {
  const canvas = document.createElement("canvas");
  canvas.width = at("video").videoWidth;
  canvas.height = at("video").videoHeight;
  canvas.getContext("2d").drawImage(at("video"), 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  return new File([blob], "camera", { type: "image/jpeg" });
}

function stopCamera() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  at("video").srcObject = null;
  at("camera").hidden = true;
  at("camera-start").hidden = false;
  at("camera-start").focus();
}
