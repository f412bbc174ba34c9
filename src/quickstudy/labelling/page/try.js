// The trained model at work: what came of the training, and photos or the camera to try it on. What it gets wrong is
// labelled on the spot.

import * as server from "./server.js";
import { at, classNumber, counted, dot, make, percent, say, sure } from "./common.js";
import { takeIn } from "./intake.js";

const MOST_RESULTS = 30;
let shown = "";

const interval = (score) => `${percent(score.interval_95[0])} to ${percent(score.interval_95[1])}`;

export function update(state) {
  const { training } = state;
  const now = JSON.stringify(training);
  if (now === shown) return;
  shown = now;
  at("drop").hidden = training.state !== "done";
  const place = at("training");
  if (training.state === "none") {
    place.replaceChildren(make("h2", {}, "There is no model yet"), make("p", { class: "hint" }, `Train makes one of your ${counted(state.labelled, "label")}: one file, and a report on how far to trust it.`));
  } else if (training.state === "running") {
    place.replaceChildren(make("h2", {}, "Training …"), make("p", { class: "hint", role: "status" }, training.step));
  } else if (training.state === "failed") {
    place.replaceChildren(make("h2", {}, "That did not work"), make("p", { class: "wrong", role: "alert" }, training.error));
  } else {
    const { test } = training;
    place.replaceChildren(
      make("h2", {}, make("bdi", {}, training.model)),
      make("p", { class: "big" }, percent((test || training.cross_validation).accuracy)),
      make("p", { class: "hint" }, test ? `${interval(test)}, by ${counted(test.n, "photo")} drawn at random and never learned from` : `${interval(training.cross_validation)}, by cross-validation of ${counted(training.trained_on, "photo")}; label more photos that are drawn at random for a test`),
      make("p", { class: "hint" }, `Learned from ${counted(training.trained_on, "photo")} of ${counted(training.classes.length, "class", "classes")} in ${training.seconds} s. `,
        make("a", { href: "report", target: "_blank", rel: "noopener" }, "The report"), " says how far to trust it."));
    say(`${training.model} is trained.`);
  }
}

async function examine(blob, name) {
  const picture = make("img", { alt: name });
  picture.src = URL.createObjectURL(blob);
  const words = make("div", { class: "words" }, make("p", { class: "quiet" }, "Looking …"));
  const item = make("li", { class: "card result" }, picture, words);
  at("results").prepend(item);
  while (at("results").children.length > MOST_RESULTS) at("results").lastElementChild.remove();
  try {
    const { classes, strange } = await server.tryOut(blob);
    const [best, share] = classes[0];
    const says = strange ? `None of these (nearest: ${best}, ${percent(share)})` : `${best}, ${sure(share)}`;
    const others = classes.slice(1, 4).map(([other, p]) => `${other} ${percent(p)}`).join(", ");
    const wrong = make("div", { class: "acts" }, ...server.state.classes.map((one) => make("button", {
      type: "button", class: "small", onclick: () => keep(blob, one.name, wrong, name),
    }, dot(classNumber(one.name)), make("bdi", {}, one.name))));
    words.replaceChildren(make("h3", {}, make("bdi", {}, says)), make("p", { class: "quiet" }, others), make("details", {}, make("summary", {}, "Label it"), wrong));
    say(`${name}: ${says}`);
  } catch (error) {
    words.replaceChildren(make("p", { class: "wrong" }, error.message));
  }
}

async function keep(blob, name, place, file) {
  try {
    await server.keep(blob, name);
    place.replaceChildren(make("p", { class: "quiet" }, `Labelled ${name}. Train again to learn from it.`));
    say(`${file} is labelled ${name}.`);
  } catch (error) {
    place.prepend(make("p", { class: "wrong" }, error.message));
  }
}

async function all(files) {
  for (const file of files) await examine(file, file.name || "photo");
}

export function begin() {
  takeIn(at("drop"), {
    take: all,
    trouble: (error) => say(`That did not work: ${error.message}`),
    hint: "Drop or paste photos, or use the camera. What is wrong can be labelled at once.",
    shoot: "What is this?",
    wanted: () => !at("try").hidden && !at("drop").hidden,
  });
}
export const key = () => false;
export const label = () => {};
