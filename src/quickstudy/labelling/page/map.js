// The map of all photos: those that look alike lie side by side. What has a label is full, what the head guesses is
// pale. A line around photos selects them; the keyboard moves a ring that does the same. Where photos may have several
// labels, keys switch them, and Enter gives all that are selected those that are on.

import * as server from "./server.js";
import { asWords, at, classButtons, colour, counted, dot, inOrder, make, onColours, paint, say, several, sure, tile, toggle } from "./common.js";

const SHOWN = 48;
let data = null;
let chosen = [];
let draft = new Set(); // labels that are switched on, where there may be several
let loop = null;
let ring = null;
let drawClasses = () => {};
let loading = false;

const unpack = (text, kind) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new kind(bytes.buffer);
};

export async function load() {
  if (loading) return;
  loading = true;
  try {
    const answer = await server.map();
    if (!answer.n) {
      data = null;
      at("map-title").textContent = server.state.extracted ? "The map is being drawn …" : "The map comes once every photo has been looked at.";
      return;
    }
    data = {
      n: answer.n, x: unpack(answer.x, Uint16Array), y: unpack(answer.y, Uint16Array), label: unpack(answer.label, Int16Array),
      guess: unpack(answer.guess, Int16Array), sure: unpack(answer.sure, Int16Array), id: (k) => answer.ids.slice(16 * k, 16 * k + 16),
    };
    draw();
    describe();
  } finally {
    loading = false;
  }
}

const canvas = at("canvas");
const spot = (k) => [14 + (data.x[k] / 65535) * (canvas.clientWidth - 28), 14 + (data.y[k] / 65535) * (canvas.clientHeight - 28)];

function draw() {
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  if (!data) return;
  const radius = data.n > 4000 ? 2.4 : data.n > 800 ? 3.4 : 5;
  const ink = getComputedStyle(document.body).color;
  const picked = new Set(chosen);
  for (const labelled of [false, true]) {
    for (let k = 0; k < data.n; k += 1) {
      if (data.label[k] === -2 || data.label[k] >= 0 !== labelled) continue;
      const [x, y] = spot(k);
      const number = labelled ? data.label[k] : data.guess[k];
      pen.globalAlpha = labelled ? 1 : 0.4;
      pen.fillStyle = number < 0 ? "gray" : colour(number);
      pen.beginPath();
      pen.arc(x, y, labelled ? radius + 0.8 : radius, 0, 2 * Math.PI);
      pen.fill();
      if (picked.has(k)) {
        pen.globalAlpha = 1;
        pen.strokeStyle = ink;
        pen.lineWidth = 1.6;
        pen.beginPath();
        pen.arc(x, y, radius + 2.2, 0, 2 * Math.PI);
        pen.stroke();
      }
    }
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = ink;
  pen.lineWidth = 2;
  pen.setLineDash([6, 5]);
  if (loop && loop.length > 1) {
    pen.beginPath();
    loop.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
  }
  if (ring && document.activeElement === canvas) {
    pen.beginPath();
    pen.arc(ring.x, ring.y, ring.r, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function inside(points, x, y) {
  let within = false;
  for (let k = 0, before = points.length - 1; k < points.length; before = k, k += 1) {
    const [ax, ay] = points[k];
    const [bx, by] = points[before];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
  }
  return within;
}

async function select(test) {
  chosen = [];
  for (let k = 0; k < data.n; k += 1) if (data.label[k] === -1 && test(...spot(k))) chosen.push(k);
  draw();
  await describe();
}

async function describe() {
  const counts = new Map();
  for (const k of chosen) counts.set(data.guess[k], (counts.get(data.guess[k]) || 0) + 1);
  const guesses = [...counts].filter(([number]) => number >= 0).sort((a, b) => b[1] - a[1]).slice(0, 3)
    .map(([number, n]) => `${server.state.classes[number].name} ${n}`);
  at("map-title").textContent = chosen.length
    ? `${counted(chosen.length, "photo")} without a label selected${guesses.length ? `; taken for ${guesses.join(", ")}` : ""}`
    : "Nothing is selected.";
  at("map-clear").hidden = !chosen.length;
  drawDraft();
  const ids = chosen.slice(0, SHOWN).map(data.id);
  const tiles = chosen.slice(0, SHOWN).map((k) => tile({ id: data.id(k), name: "photo" }, data.guess[k] >= 0 ? `${server.state.classes[data.guess[k]].name} ${sure(data.sure[k] / 100)}` : ""));
  at("map-tiles").replaceChildren(...tiles);
  await paint(tiles, ids);
}

function drawDraft() {
  if (!several()) return;
  if (!chosen.length) draft = new Set();
  at("map-take").hidden = !chosen.length;
  at("map-take").textContent = `All are: ${asWords(inOrder(draft))}`;
  drawClasses();
}

async function give(names) {
  const photos = chosen.map((k) => ({ id: data.id(k), seen: 0 }));
  say(`${asWords(names)}: ${counted(photos.length, "photo")}.`);
  chosen = [];
  await server.act(names.length ? "label" : "none", photos, names, "map");
  await load();
}

/** Gives what is selected this class, or switches the label on or off. */
export function label(name) {
  if (!chosen.length) server.addClass(name);
  else if (several()) {
    toggle(draft, name);
    drawDraft();
    say(`${name} is ${draft.has(name) ? "on" : "off"}. Enter says: ${asWords(inOrder(draft))}.`);
  } else give([name]);
}
const take = () => { if (several() && chosen.length) give(inOrder(draft)); };

export function begin() {
  drawClasses = classButtons(at("map-classes"), label, () => draft);
  at("map-classes").prepend(at("map-take"));
  at("map-take").addEventListener("click", take);
  const where = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("pointerdown", (event) => {
    if (!data || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    loop = [where(event)];
    ring = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!loop) return;
    loop.push(where(event));
    draw();
  });
  const finish = () => {
    if (!loop) return;
    const points = loop;
    loop = null;
    if (points.length > 4) select((x, y) => inside(points, x, y));
    else draw();
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) ring = ring || { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2, r: 50 }; draw(); });
  canvas.addEventListener("blur", draw);
  at("map-clear").addEventListener("click", () => { chosen = []; draw(); describe(); });
  new ResizeObserver(draw).observe(canvas);
  onColours(draw);
}

export function key(event) {
  if (event.key.toLowerCase() === "n") {
    if (chosen.length) give([]);
    return true;
  }
  if (event.key === "Enter") {
    take();
    return true;
  }
  if (document.activeElement !== canvas || !data) return false;
  ring = ring || { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2, r: 50 };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    ring.x = Math.max(0, Math.min(canvas.clientWidth, ring.x + 14 * moves[event.key][0]));
    ring.y = Math.max(0, Math.min(canvas.clientHeight, ring.y + 14 * moves[event.key][1]));
  } else if (event.key === "+" || event.key === "=") ring.r = Math.min(300, ring.r * 1.2);
  else if (event.key === "-") ring.r = Math.max(8, ring.r / 1.2);
  else if (event.key === " ") {
    const { x, y, r } = ring;
    select((a, b) => (a - x) ** 2 + (b - y) ** 2 <= r * r);
  } else return false;
  draw();
  return true;
}

export function update(state) {
  drawClasses();
  at("map-press").textContent = several() ? "press labels and Enter" : "press a class";
  at("legend").replaceChildren(...state.classes.map((one, number) => make("li", {}, dot(number), make("bdi", {}, one.name))));
  load();
}
