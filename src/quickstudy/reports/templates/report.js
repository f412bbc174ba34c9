// Fills the page in from the data block, with what all pages make their elements with (models/site/elements.js), which
// stands before this. Whatever comes from the user goes through textContent or an attribute, never
// through markup.
(() => {
  const data = JSON.parse(at("data").textContent);
  const { classes, images, sprites } = data;
  const total = images.name.length;
  const FEW = 60; // thumbnails shown at once; a button shows the rest

  // One rule a sheet, so that the page holds each sheet once however often its pictures are shown.
  const rules = document.styleSheets[0];
  sprites.sheets.forEach((sheet, number) => {
    rules.insertRule(`.sheet-${number} { background-image: url("data:image/webp;base64,${sheet}") }`, rules.cssRules.length);
  });

  function paint(element, image, scale = 1) {
    const place = image % sprites.perSheet;
    const size = sprites.side * scale;
    const left = (place % sprites.columns) * size;
    const top = Math.floor(place / sprites.columns) * size;
    element.classList.add(`sheet-${Math.floor(image / sprites.perSheet)}`);
    element.style.backgroundPosition = `-${left}px -${top}px`;
    element.style.backgroundSize = `${sprites.columns * size}px auto`;
    return element;
  }

  // An image has labels, one or several, and gets some where it was predicted by what had not seen it.
  const counts = (image) => images.gets[image] !== null && (data.several || images.has[image].length > 0);
  const missed = (image) => images.has[image].filter((label) => !images.gets[image].includes(label));
  const wrong = (image) => images.gets[image].filter((label) => !images.has[image].includes(label));
  const isMistake = (image) => counts(image) && missed(image).length + wrong(image).length > 0;
  const named = (labels) => labels.map((label) => classes[label]).join(" | ") || "none of these";
  const first = (image) => images.has[image][0] ?? -1;

  function describe(image) {
    const parts = [images.name[image], `labelled ${images.label[image] || "not at all"}`];
    if (images.gets[image] !== null) parts.push(`predicted ${named(images.gets[image])}`);
    return parts.join(", ");
  }

  function thumb(image) {
    const button = make("button", { type: "button", class: "thumb", "aria-label": describe(image), title: images.name[image], onclick: () => open(image) });
    return paint(button, image);
  }

  function caption(from, to, rest) {
    const line = make("span", { class: "caption" }, make("bdi", {}, from));
    if (to !== null) line.append(" → ", make("bdi", { class: "to" }, to));
    if (rest) line.append(` ${rest}`);
    return line;
  }

  function open(image) {
    const picture = at("detail-picture");
    picture.className = "";
    paint(picture, image, 3);
    at("detail-name").textContent = images.name[image];
    const facts = [["label", images.label[image] || "none"], ["split", images.split[image] < 0 ? "–" : data.splits[images.split[image]]]];
    for (const [number, share] of images.top[image]) facts.push([classes[number], sure(share)]);
    if (images.by[image] >= 0) facts.push(["predicted by", data.ways[images.by[image]]]);
    at("detail-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, make("bdi", {}, name)), make("dd", {}, make("bdi", {}, value))]));
    at("detail").showModal();
  }
  at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });

  // Filters: what they leave, and everything that is drawn anew when they change.
  const chosen = { label: "", split: "", mistakes: false };
  const passes = (image) =>
    (chosen.label === "" || images.has[image].includes(Number(chosen.label))) &&
    (chosen.split === "" || images.split[image] === Number(chosen.split)) &&
    (!chosen.mistakes || isMistake(image));
  const redrawn = [];

  function list(id, entries, all) {
    const place = at(id);
    const more = at(`${id}-more`);
    let limit = FEW;
    function draw() {
      const shown = entries().filter((entry) => passes(entry.image));
      place.replaceChildren(...shown.slice(0, limit).map((entry) => make("li", {}, thumb(entry.image), entry.caption)));
      if (!shown.length) place.append(make("li", { class: "nothing" }, entries().length ? "None with these filters." : place.dataset.none));
      more.hidden = shown.length <= limit && entries().length >= all();
      more.replaceChildren();
      if (shown.length > limit) {
        more.append(make("button", { type: "button", class: "show-all", onclick: () => { limit = Infinity; draw(); } }, `Show all ${shown.length}`));
      } else if (entries().length < all()) {
        more.append(`The first ${entries().length} of ${all()}.`);
      }
    }
    redrawn.push(draw);
    return { draw, reset: () => { limit = FEW; } };
  }

  const probable = (image) => (images.top[image].length ? sure(images.top[image][0][1], 0) : "");
  const mistakes = data.mistakes.map((image) => ({ image, caption: caption(images.label[image], named(images.gets[image]), data.several ? "" : probable(image)) }));
  list("mistakes-images", () => mistakes, () => 0);
  const errors = data.labelErrors.map(([image, given, suggested, probability]) => ({ image, caption: caption(given, suggested, sure(probability, 0)) }));
  list("label-errors-images", () => errors, () => data.totals.labelErrors);
  const outliers = data.outliers.map(([image, score]) => ({ image, caption: caption(images.label[image], null, String(score)) }));
  list("outliers-images", () => outliers, () => data.totals.outliers);
  const flaws = data.flaws.map(([image, kind, value, limit]) => ({ image, caption: caption(images.label[image], null, `${kind} (${value}; limit ${limit})`) }));
  list("quality-flaws-images", () => flaws, () => data.totals.flaws);

  // Duplicates, side by side.
  function drawGroups() {
    const place = at("duplicates-groups");
    const groups = data.duplicates.filter((group) => group.members.some(passes));
    place.replaceChildren(...groups.map((group) =>
      make("div", { class: group.bad ? "group bad" : "group" }, make("p", {}, make("bdi", {}, group.notes)),
        make("ul", {}, ...group.members.slice(0, 12).map((image) => {
          const split = images.split[image] < 0 ? "" : `, ${data.splits[images.split[image]]}`;
          return make("li", {}, thumb(image), make("span", { class: "caption" }, make("bdi", {}, images.label[image]), split, make("br"), make("bdi", { class: "path" }, images.name[image])));
        })))));
    if (!groups.length) place.append(make("p", { class: "quiet" }, data.duplicates.length ? "None with these filters." : place.dataset.none));
    const more = at("duplicates-groups-more");
    more.hidden = data.duplicates.length >= data.totals.duplicates;
    more.textContent = `The first ${data.duplicates.length} groups of ${data.totals.duplicates}.`;
  }
  redrawn.push(drawGroups);

  // The confusion matrix; a cell opens its images below.
  const matrix = at("matrix");
  let opened = null;
  let inCell = [];
  const cellList = list("cell-images", () => inCell, () => 0);

  function openCell(truth, predicted, members, button) {
    opened = opened === `${truth} ${predicted}` ? null : `${truth} ${predicted}`;
    for (const other of matrix.querySelectorAll("button")) other.setAttribute("aria-expanded", "false");
    at("cell").hidden = opened === null;
    if (opened === null) return;
    button.setAttribute("aria-expanded", "true");
    at("cell-title").textContent = saying(members.length, truth, predicted, (name) => `‘${name}’`);
    inCell = members.map((image) => ({ image, caption: caption(probable(image), null, "") }));
    cellList.reset();
    cellList.draw();
  }

  const NOTHING = classes.length; // the last row and column, where labels were missed or given on their own
  const sides = data.several ? [...classes, "–"] : classes;

  function saying(number, truth, predicted, quoted) {
    if (truth === predicted) return `${number} of ${quoted(classes[truth])} recognised`;
    if (!data.several) return `${number} of ${quoted(classes[truth])} taken for ${quoted(classes[predicted])}`;
    if (truth === NOTHING) return `${number} given ${quoted(classes[predicted])} and nothing missed`;
    return `${number} of ${quoted(classes[truth])} missed, ${predicted === NOTHING ? "nothing" : quoted(classes[predicted])} given instead`;
  }

  // The cells that an image is in: one for each label found, and one for each pair of a missed and a wrong one.
  function cellsOf(image) {
    const found = images.has[image].filter((label) => images.gets[image].includes(label)).map((label) => [label, label]);
    const [none, extra] = [missed(image), wrong(image)];
    for (const truth of none.length || !extra.length ? none : [NOTHING]) {
      for (const predicted of extra.length ? extra : [NOTHING]) found.push([truth, predicted]);
    }
    return found;
  }

  function drawMatrix() {
    opened = null;
    at("cell").hidden = true;
    const cells = new Map();
    for (let image = 0; image < total; image += 1) {
      if (images.by[image] < 0 || !counts(image) || !passes(image)) continue;
      for (const [truth, predicted] of cellsOf(image)) {
        const key = `${truth} ${predicted}`;
        if (!cells.has(key)) cells.set(key, []);
        cells.get(key).push(image);
      }
    }
    const head = make("tr", {}, make("td"), ...sides.map((name) => make("th", { scope: "col", title: name }, make("bdi", {}, name))));
    const rows = sides.map((name, truth) => {
      const sizes = sides.map((_, predicted) => (cells.get(`${truth} ${predicted}`) || []).length);
      const sum = sizes.reduce((a, b) => a + b, 0);
      return make("tr", {}, make("th", { scope: "row", title: name }, make("bdi", {}, name)), ...sides.map((_, predicted) => {
        const members = cells.get(`${truth} ${predicted}`) || [];
        if (!members.length) return make("td", {}, make("span", { class: "zero" }));
        const label = saying(members.length, truth, predicted, (words) => words);
        const button = make("button", { type: "button", "aria-expanded": "false", "aria-label": label, title: label }, String(members.length));
        button.addEventListener("click", () => openCell(truth, predicted, members, button));
        const strength = truth === predicted ? 0.08 + 0.4 * (members.length / sum) : 0.12 + 0.88 * Math.sqrt(members.length / sum);
        button.style.backgroundColor = `rgb(var(--${truth === predicted ? "right" : "wrong"}) / ${Math.min(strength, 0.6).toFixed(3)})`;
        return make("td", {}, button);
      }));
    });
    matrix.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  }
  redrawn.push(drawMatrix);

  // The map.
  const canvas = at("map-canvas");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hue = (number) => (number * 360) / Math.max(classes.length, 1);
  const colour = (number) => (number < 0 ? "gray" : `oklch(${dark.matches ? 0.75 : 0.62} ${number % 2 ? 0.19 : 0.13} ${hue(number)})`);
  let current = -1;
  const spot = (image) => [12 + images.x[image] * (canvas.clientWidth - 24), 12 + images.y[image] * (canvas.clientHeight - 24)];

  function drawMap() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const radius = total > 2000 ? 2.6 : total > 400 ? 3.5 : 5;
    const ink = getComputedStyle(document.body).color;
    for (const visible of [false, true]) {
      for (let image = 0; image < total; image += 1) {
        if (passes(image) !== visible) continue;
        const [x, y] = spot(image);
        pen.globalAlpha = visible ? 0.85 : 0.07;
        pen.beginPath();
        pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.fillStyle = colour(first(image));
        pen.fill();
        if (visible && isMistake(image)) {
          pen.beginPath();
          pen.arc(x, y, radius + 1.6, 0, 2 * Math.PI);
          pen.strokeStyle = ink;
          pen.stroke();
        }
      }
    }
    if (current >= 0) {
      const [x, y] = spot(current);
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.stroke();
    }
  }
  redrawn.push(drawMap);
  dark.addEventListener("change", () => { drawMap(); drawLegend(); });
  new ResizeObserver(drawMap).observe(canvas);

  function point(image) {
    current = image;
    const hover = at("map-hover");
    hover.hidden = image < 0;
    at("map-note").textContent = image < 0 ? "" : describe(image);
    if (image >= 0) {
      const [x, y] = spot(image);
      const picture = paint(make("div", { class: "thumb" }), image);
      hover.replaceChildren(picture, make("bdi", {}, images.label[image]));
      hover.style.left = `${Math.max(0, Math.min(x + 12, canvas.clientWidth - 96))}px`;
      hover.style.top = `${y + 130 > canvas.clientHeight ? Math.max(0, y - 130) : y + 12}px`;
    }
    drawMap();
  }

  function nearest(x, y) {
    let best = -1;
    let least = 400;
    for (let image = 0; image < total; image += 1) {
      if (!passes(image)) continue;
      const [left, top] = spot(image);
      const distance = (left - x) ** 2 + (top - y) ** 2;
      if (distance < least) { least = distance; best = image; }
    }
    return best;
  }
  const under = (event) => nearest(event.offsetX, event.offsetY);
  canvas.addEventListener("pointermove", (event) => { const image = under(event); if (image !== current) point(image); });
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("blur", () => point(-1));
  canvas.addEventListener("click", (event) => { const image = under(event); if (image >= 0) open(image); });
  // Arrow keys go to the nearest image within a quarter turn of their direction.
  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && current >= 0) {
      event.preventDefault(); // or the dialog's button, which has the focus by then, would be pressed at once
      open(current);
      return;
    }
    const direction = directions[event.key];
    if (!direction) return;
    event.preventDefault();
    const [x, y] = current >= 0 ? spot(current) : [canvas.clientWidth / 2, canvas.clientHeight / 2];
    let best = current;
    let least = Infinity;
    for (let image = 0; image < total; image += 1) {
      if (image === current || !passes(image)) continue;
      const [left, top] = spot(image);
      const along = (left - x) * direction[0] + (top - y) * direction[1];
      const aside = Math.abs((left - x) * direction[1]) + Math.abs((top - y) * direction[0]);
      const distance = Math.hypot(along, aside);
      if (along > 0 && along >= aside && distance < least) { least = distance; best = image; }
    }
    if (best >= 0) point(best);
  });

  function drawLegend() {
    at("legend").replaceChildren(...classes.map((name, number) => {
      const mark = make("i");
      mark.style.backgroundColor = colour(number);
      return make("li", {}, mark, make("bdi", {}, name));
    }));
  }

  // Tables that a click on a heading sorts.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === (column ? "descending" : "ascending") ? column === 0 : column > 0;
      const value = (row) => (column ? Number(row.cells[column].dataset.value) : row.cells[0].textContent);
      const order = [...table.tBodies[0].rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
      if (descending) order.reverse();
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      table.tBodies[0].append(...order);
    }));
  }

  function redraw() {
    for (const draw of redrawn) draw();
    let number = 0;
    for (let image = 0; image < total; image += 1) number += passes(image);
    at("filter-count").textContent = `${number.toLocaleString("en")} of ${total.toLocaleString("en")} images`;
  }
  at("class-filter").append(...classes.map((name, number) => make("option", { value: number }, name)));
  data.splits.forEach((name, number) => { if (images.split.includes(number)) at("split-filter").append(make("option", { value: number }, name)); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("input", () => {
    chosen.label = at("class-filter").value;
    chosen.split = at("split-filter").value;
    chosen.mistakes = at("mistakes-filter").checked;
    redraw();
  });
  drawLegend();
  redraw();
})();
