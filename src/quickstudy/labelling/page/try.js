// The trained model at work: what came of the training, and photos or the camera to try it on. What it gets wrong is
// labelled on the spot.

import * as server from "./server.js";
import { asWords, at, classNumber, counted, dot, inOrder, make, percent, say, several, sure, toggle } from "./common.js";
import { takeIn } from "./intake.js";

const MOST_RESULTS = 30;
let shown = "";

const interval = (score) => `${percent(score.low)} to ${percent(score.high)}`;

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
    const { test, cross_validation: unseen } = training;
    const judged = test || unseen; // neither where there are very few photos
    place.replaceChildren(
      make("h2", {}, make("bdi", {}, training.model)),
      make("p", { class: "big" }, judged ? percent(judged.share) : "–"),
      make("p", { class: "hint" }, test ? `${several() ? "F1 of all labels: " : ""}${interval(test)}, by ${counted(test.n, "photo")} drawn at random and never learned from` : unseen ? `${several() ? "All labels right: " : ""}${interval(unseen)}, by cross-validation of ${counted(unseen.n, "photo")}; label more photos that are drawn at random for a test` : "How good it is, is not known: label more photos"),
      make("p", { class: "hint" }, `Learned from ${counted(training.trained_on, "photo")} of ${several() ? counted(training.classes.length, "label") : counted(training.classes.length, "class", "classes")} in ${training.seconds} s. `,
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
    const { classes, given, strange } = await server.tryOut(blob);
    const [best, share] = classes[0];
    const one = strange ? `None of these (nearest: ${best}, ${sure(share)})` : `${best}, ${sure(share)}`;
    const says = several() ? asWords(given) : one;
    const others = classes.slice(several() ? 0 : 1, 4).map(([other, p]) => `${other} ${sure(p)}`).join(", ");
    const wrong = corrections(blob, name, new Set(given));
    words.replaceChildren(make("h3", {}, make("bdi", {}, says)), make("p", { class: "quiet" }, others), make("details", {}, make("summary", {}, "Label it"), wrong));
    say(`${name}: ${says}`);
  } catch (error) {
    words.replaceChildren(make("p", { class: "wrong" }, error.message));
  }
}

// Buttons that say what a photo is; where it may have several labels, they switch them, and one more says them.
function corrections(blob, file, draft) {
  const place = make("div", { class: "acts" });
  const choose = (name, button) => {
    if (!several()) keep(blob, [name], place, file);
    else button.setAttribute("aria-pressed", String(toggle(draft, name).has(name)));
  };
  const buttons = server.state.classes.map(({ name }) => {
    const button = make("button", { type: "button", class: "small", "aria-pressed": several() ? String(draft.has(name)) : null, onclick: () => choose(name, button) },
      dot(classNumber(name)), make("bdi", {}, name));
    return button;
  });
  const done = make("button", { type: "button", class: "small primary", onclick: () => keep(blob, inOrder(draft), place, file) }, "Save these labels");
  place.append(...buttons, ...(several() ? [done] : []));
  return place;
}

async function keep(blob, names, place, file) {
  const what = asWords(names);
  try {
    await server.keep(blob, names);
    place.replaceChildren(make("p", { class: "quiet" }, `Labelled ${what}. Train again to learn from it.`));
    say(`${file} is labelled ${what}.`);
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
