// Classes of one's own, taught on this page: named, shown pictures by the camera or as files, learned at once by the head
// in head.js, saved to a file and opened again. Nothing of it leaves the browser but by that file.

import { read, written } from "./classes.js";
import { sha256 } from "./digest.js";
import { at, counted, make } from "./elements.js";
import { fitHead, halvesOf, probabilitiesOf, rootsOf } from "./head.js";
import { images, picture, startCamera } from "./intake.js";

/** Name under which the page offers what was taught. */
export const TAUGHT = "Your classes";
const BURST = 20;
const BURST_MS = 150; // from one picture to the next, at least
const LONGEST_NAME = 80;
const MOST_PICTURES = 2000; // in all; beyond, the head takes minutes
const SHOWN = 24; // pictures of a class

let settings = null;
let featuresOf = null;
let changed = () => {};
const classes = []; // {name, pictures: [{name, digest, halves, url}], element}
let head = null; // with the names that it tells apart
let unsaved = false;
let busy = null; // the class whose burst is under way
let learning = 0; // number of the newest fit

/** What the page may classify with; null while fewer than two classes have pictures. */
export const model = () => (head ? { name: TAUGHT, classes: head.names, taught: true } : null);

/** The classes with their probabilities by what the network gives of a photo, the most probable first. */
export function classify(features) {
  const shares = probabilitiesOf(head, features);
  return head.names.map((label, place) => ({ label, probability: shares[place] })).sort((a, b) => b.probability - a.probability);
}

/** Puts the section on the page. spec: how classes are taught; features: gives what the network gives of a photo, a
 * Float32Array; start: the text of a file of classes that the page carries, or null; news: is called when the head has
 * changed. */
export function begin(spec, features, start, news) {
  [settings, featuresOf, changed] = [spec, features, news];
  const field = make("input", { type: "text", id: "class-name", maxlength: LONGEST_NAME, autocomplete: "off", placeholder: "Name of a class …", "aria-label": "Name of a new class" });
  const add = make("form", { id: "class-add", class: "row" }, field, make("button", { type: "submit" }, "Add a class"));
  add.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => {
      const { element } = classNamed(field.value);
      field.value = "";
      element.querySelector(".burst").focus();
    });
  });
  document.querySelector("main").classList.add("teaching");
  at("drift").after(make("section", { id: "teach", "aria-labelledby": "teach-title" },
    make("h2", { id: "teach-title" }, "Teach it classes of your own"),
    make("p", { class: "hint" }, "Name a class and show what belongs to it: by the camera, or as photos and folders dropped on it. With two classes it learns, here in the browser."),
    make("ul", { id: "taught" }), add,
    make("p", { id: "learned", role: "status", "aria-live": "polite" }), make("p", { id: "teach-trouble", role: "alert", hidden: true }),
    make("div", { class: "row" },
      make("button", { type: "button", id: "classes-save", class: "plain", disabled: true, onclick: save }, "Save the classes"),
      make("label", { class: "button plain", for: "classes-open" }, "Open saved classes"),
      make("input", { type: "file", id: "classes-open", accept: ".json,application/json", class: "hidden-input", multiple: true, onchange: open }))));
  if (start) {
    const given = read(start, settings), names = counted(given.length, "class", "classes");
    const button = make("button", { type: "button", id: "classes-start", onclick: () => attempt(() => { join(given); button.remove(); }) }, `Begin with the ${names} it came with`);
    add.before(button);
  }
  addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
}

/** Does something of which an error is told on the page. */
async function attempt(action) {
  complain("");
  try {
    await action();
  } catch (error) {
    complain(error.message);
  }
}

function complain(text) {
  at("teach-trouble").textContent = text;
  at("teach-trouble").hidden = !text;
}
const say = (text) => { at("learned").textContent = text; };

/** The class of a name, made where there is none. */
function classNamed(text) {
  const name = checked(text), known = classes.find((one) => one.name === name);
  if (known) return known;
  const one = { name, pictures: [], element: null };
  one.element = card(one);
  classes.push(one);
  at("taught").append(one.element);
  return one;
}

function checked(text) {
  const name = text.trim().slice(0, LONGEST_NAME);
  if (!name) throw new Error("A class needs a name.");
  return name;
}

function card(one) {
  const name = make("input", { type: "text", class: "name", value: one.name, maxlength: LONGEST_NAME, "aria-label": "Name of the class", onchange: () => attempt(() => rename(one, name)) });
  const number = `photos-${Math.random().toString(36).slice(2)}`;
  const input = (id, more) => make("input", { type: "file", id, class: "hidden-input", multiple: true, ...more,
    onchange: (event) => { const files = images(event.target.files); event.target.value = ""; attempt(() => take(one, files)); } });
  const element = make("li", { class: "card" },
    make("div", { class: "head" }, name, make("span", { class: "count" }, counted(0, "picture")),
      make("button", { type: "button", class: "plain remove", onclick: () => attempt(() => remove(one)) }, "Remove")),
    make("div", { class: "pictures" }),
    make("div", { class: "row" },
      make("button", { type: "button", class: "burst", onclick: () => attempt(() => burst(one)) }, `Take ${BURST} pictures`),
      make("label", { class: "button plain", for: number }, "Add photos"), input(number, { accept: "image/*" }),
      make("label", { class: "button plain", for: `${number}-folder` }, "Add a folder"), input(`${number}-folder`, { webkitdirectory: true })));
  element.addEventListener("dragover", (event) => { event.preventDefault(); event.stopPropagation(); element.classList.add("over"); });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    element.classList.remove("over");
    const dropped = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
    attempt(async () => take(one, (await Promise.all(dropped.map(filesIn))).flat()));
  });
  return element;
}

/** The images in what was dropped: a File, or an entry of a file or a folder. */
async function filesIn(entry) {
  if (!entry) return [];
  if (entry instanceof File) return images([entry]);
  if (entry.isFile) return images([await new Promise((resolve, reject) => entry.file(resolve, reject))]);
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  found.sort((a, b) => (a.name < b.name ? -1 : 1));
  return (await Promise.all(found.map(filesIn))).flat();
}

function rename(one, field) {
  const wanted = field.value;
  field.value = one.name;
  const name = checked(wanted);
  if (name === one.name) return;
  if (classes.some((other) => other.name === name)) throw new Error(`There is a class '${name}' already.`);
  one.name = field.value = name;
  learn();
}

function remove(one) {
  classes.splice(classes.indexOf(one), 1);
  one.element.remove();
  one.pictures.forEach(({ url }) => URL.revokeObjectURL(url));
  at("class-name").focus();
  learn();
}

/** Takes pictures by the camera, one after the other, until there are enough or the button is pressed again. */
async function burst(one) {
  const button = one.element.querySelector(".burst");
  if (busy) {
    busy = null;
    return;
  }
  if (!(await startCamera())) return;
  busy = one;
  button.textContent = "Stop";
  at("video").scrollIntoView({ block: "nearest" }); // on a phone the class may be far below
  try {
    const told = [];
    for (let number = 1; number <= BURST && busy === one && classes.includes(one); number++) {
      const next = new Promise((resolve) => setTimeout(resolve, BURST_MS));
      say(`Picture ${number} of ${BURST} for ${one.name}`);
      told.push(await addPicture(one, await picture(), `camera ${one.pictures.length + 1}`, true));
      await next;
    }
    learn(summary(told));
  } finally {
    busy = null;
    button.textContent = `Take ${BURST} pictures`;
    button.focus();
  }
}

/** Takes files into a class. */
async function take(one, files) {
  const told = [];
  for (const file of files) {
    say(`Looking at ${file.name}, ${told.length + 1} of ${files.length}, for ${one.name}`);
    told.push(await addPicture(one, file, file.name));
  }
  if (!files.length) throw new Error("There was no image among what was given.");
  learn(summary(told));
}

/** Adds one picture; says why not, or gives an empty text. */
async function addPicture(one, file, name, burst = false) {
  try {
    const digest = sha256(new Uint8Array(await file.arrayBuffer()));
    const known = classes.find(({ pictures }) => pictures.some((other) => other.digest === digest));
    if (known) return `${name} is in ${known.name} already`;
    if (classes.reduce((sum, { pictures }) => sum + pictures.length, 0) >= MOST_PICTURES) return `${name}: there are ${MOST_PICTURES.toLocaleString("en")} pictures already, which is the limit`;
    const halves = halvesOf(await featuresOf(file));
    one.pictures.push({ name, digest, halves, burst, url: URL.createObjectURL(file) });
    draw(one);
    return "";
  } catch (error) {
    return `${name}: ${error.message}`;
  }
}

function summary(told) {
  const left = told.filter(Boolean);
  return left.length ? `${counted(left.length, "picture")} left out: ${left[0]}${left.length > 1 ? ", …" : ""}. ` : "";
}

function draw(one) {
  const shown = one.pictures.filter(({ url }) => url).slice(-SHOWN), others = one.pictures.length - shown.length;
  one.element.querySelector(".count").textContent = counted(one.pictures.length, "picture");
  one.element.querySelector(".pictures").replaceChildren(
    ...(others ? [make("span", { class: "others" }, `${others} not shown`)] : []),
    ...shown.map((each) => make("button", {
      type: "button", class: "picture", title: "Take it out", "aria-label": `Take ${each.name} out of ${one.name}`,
      onclick: () => attempt(() => {
        one.pictures.splice(one.pictures.indexOf(each), 1);
        URL.revokeObjectURL(each.url);
        draw(one);
        learn();
      }),
    }, make("img", { src: each.url, alt: "" }))));
}

const inOrder = (a, b) => { // by code points, as Python sorts names
  const [one, other] = [a, b].map(({ name }) => [...name].map((letter) => letter.codePointAt(0)));
  const place = one.findIndex((point, k) => point !== other[k]);
  return place < 0 ? one.length - other.length : place >= other.length ? 1 : one[place] - other[place];
};

/** Fits the head to all pictures, and says how long it took and what it is worth. */
async function learn(before = "") {
  const mine = ++learning;
  unsaved = classes.length > 0;
  at("classes-save").disabled = !unsaved;
  const taught = classes.filter(({ pictures }) => pictures.length).sort(inOrder);
  if (taught.length < 2) {
    head = null;
    say(`${before}${classes.length ? "Two classes with pictures are needed to learn." : ""}`);
    changed();
    return;
  }
  const all = taught.flatMap(({ pictures }, number) => pictures.map((one) => ({ ...one, number })));
  const names = taught.map(({ name }) => name), bursts = all.some(({ burst }) => burst);
  say(`${before}Learning from ${counted(all.length, "picture")} …`);
  let spent = 0, since = 0;
  const breathe = async () => { // so that what is said is seen, and buttons can be pressed
    spent += performance.now() - since;
    await new Promise((resolve) => setTimeout(resolve));
    since = performance.now();
    return mine !== learning;
  };
  since = performance.now();
  if (await breathe()) return;
  const rows = all.map(({ halves }) => rootsOf(halves)), numbers = all.map(({ number }) => number);
  const found = await fitHead(rows, numbers, all.map(({ digest }) => digest), taught.length, settings, breathe);
  if (!found) return;
  spent += performance.now() - since;
  head = { ...found, names };
  const { right, n } = head.heldOut;
  const judged = n ? ` Of ${counted(n, "picture")}, each by a head that had not seen it, ${right} right${bursts ? "; pictures of one burst are alike, so try it on others" : ""}.` : "";
  say(`${before}Learned ${counted(taught.length, "class", "classes")} from ${counted(all.length, "picture")} in ${Math.round(spent)} ms.${judged}`);
  changed();
}

function save() {
  const url = URL.createObjectURL(new Blob([written(settings, classes.filter(({ pictures }) => pictures.length))], { type: "application/json" }));
  make("a", { href: url, download: "classes.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  unsaved = false;
}

function open(event) {
  const files = [...event.target.files];
  event.target.value = "";
  attempt(async () => {
    const all = [];
    for (const file of files) {
      try {
        all.push(...read(await file.text(), settings));
      } catch (error) {
        throw new Error(`${file.name} cannot be opened: ${error.message}.`);
      }
    }
    join(all);
  });
}

/** Adds classes of a file; those of a name that is there already grow. */
function join(found) {
  const told = [];
  for (const { name, pictures } of found) {
    const one = classNamed(name), digests = new Map(classes.flatMap((other) => other.pictures.map(({ digest }) => [digest, other])));
    for (const each of pictures) {
      const known = digests.get(each.digest);
      if (!known) one.pictures.push(each);
      else if (known !== one) told.push(`${each.name} is in ${known.name} already`);
    }
    draw(one);
  }
  learn(summary(told));
}
