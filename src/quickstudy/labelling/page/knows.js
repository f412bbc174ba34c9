// What the head knows, live: how good it is, class by class, what more labels would bring, and how fast it learned.

import { at, counted, dot, make, percent, several } from "./common.js";

// A bar from 0 to 100 % with the interval on it and the share itself.
function scale(score) {
  const bar = make("div", { class: "scale", role: "img", "aria-label": `95 % interval ${percent(score.low)} to ${percent(score.high)}` });
  const range = make("i", { class: "range" });
  range.style.left = `${100 * score.low}%`;
  range.style.width = `${100 * (score.high - score.low)}%`;
  const point = make("i", { class: "point" });
  point.style.left = `${100 * score.share}%`;
  bar.append(range, point);
  return bar;
}

const between = (score) => `${percent(score.low)} to ${percent(score.high)}`;

function honest(state) {
  const score = state.control;
  if (!score && several() && state.control_wanted) {
    return [make("p", { class: "big" }, "–"), make("p", { class: "quiet" }, "One photo in five is drawn at random. Ten of them tell how good it is, each by a head that had not seen it.")];
  }
  if (!score) {
    return [make("p", { class: "big" }, "–"), make("p", { class: "quiet" }, state.control_wanted
      ? "One photo in five is drawn at random. They will tell how good it is, each by a head that had not seen it."
      : "There are too few photos to keep some for a check.")];
  }
  const drawn = `${counted(score.n, "photo")} drawn at random, each judged by a head that had not seen it`;
  return [make("p", { class: "big" }, percent(score.share)), scale(score),
    ...(several() ? [make("p", { class: "quiet" }, `F1 of all labels: ${between(score)}, by ${drawn}`), ...order(score)]
      : [make("p", { class: "quiet" }, `${between(score)}, by ${drawn}`)])];
}

// How well probabilities put the photos in order, which knows no threshold.
const order = ({ precision }) => (precision ? [make("p", { class: "quiet" }, `Mean average precision ${percent(precision.share)} (${between(precision)})`)] : []);

function cross(state) {
  const score = state.cross;
  if (!score) return [];
  return [make("p", {}, ...(several() ? ["F1 "] : []), make("b", {}, percent(score.share)), " by cross-validation ", make("span", { class: "quiet" }, `(${between(score)}, n = ${score.n})`)),
    make("p", { class: "quiet" }, `Photos that are asked since they are doubtful are harder than most${state.control ? ", so the figure above is the honest one" : ""}.`)];
}

function byClass(one, number, most) {
  const score = one.cross;
  const recall = score ? score.share : null;
  const bar = make("span", { class: "meter", "aria-hidden": "true" });
  const full = make("i");
  full.style.width = `${(100 * one.labels) / Math.max(most, 1)}%`;
  bar.append(full);
  const told = !score ? "too few to tell" : several() ? `F1 ${percent(recall)}` : `${percent(recall)} recognised`;
  return make("li", { title: one.gain ? `${one.gain.more} more: +${one.gain.points} ± ${one.gain.deviation} points` : "" },
    dot(number), make("bdi", {}, one.name), make("span", { class: "n" }, one.labels.toLocaleString("en")), bar,
    make("span", { class: "recall", "aria-label": told }, recall === null ? "–" : percent(recall)));
}

function forecast(state) {
  if (!state.gain) return [make("p", { class: "quiet" }, "A forecast comes with 80 labels.")];
  const best = state.classes.filter((one) => one.gain).sort((a, b) => b.gain.points - a.gain.points)[0];
  const line = (gain, of, where) => make("p", {}, `${gain.more} more ${of}: `, make("b", {}, `+${gain.points} ± ${gain.deviation}`), ` points${where}`);
  return [line(state.gain, "labels", ""),
    ...(best && best.gain.points > 0 ? [line(best.gain, `of ${best.name}`, " in recognising it")] : []),
    ...(state.enough ? [make("p", { class: "enough" }, "More labels would bring little now. It is time to train.")] : [])];
}

export function update(state) {
  at("forecast").parentElement.hidden = several();
  at("honest").replaceChildren(...honest(state));
  at("cross").replaceChildren(...cross(state));
  const most = Math.max(0, ...state.classes.map((one) => one.labels));
  at("by-class").replaceChildren(...state.classes.map((one, number) => byClass(one, number, most)),
    ...(state.classes.length ? [] : [make("li", { class: "quiet" }, "None yet: type the first one's name.")]));
  at("forecast").replaceChildren(...forecast(state));
  const { fit, suggest, choose } = state.milliseconds;
  const looked = state.extracted ? "" : `Looked at ${state.computed.toLocaleString("en")} of ${counted(state.total, "photo")}. `;
  at("speed").textContent = looked + (fit === undefined ? ""
    : `Learned ${counted(state.learned_from, "label")} in ${fit} ms, guessed ${counted(state.total, "photo")} in ${suggest} ms, chose the next in ${choose} ms.`);
}
