// What all pages make their elements with.

export const at = (id) => document.getElementById(id);

/** An element with attributes, and listeners where their names begin with "on". */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
/** A share as percent; where it would look like all or none, in up to three digits more. */
export function percent(share, digits = 1) {
  const rounded = [0, 1, 2, 3].map((more) => (100 * share).toFixed(digits + more));
  const telling = share > 0 && share < 1 ? rounded.filter((text) => text > 0 && text < 100) : [];
  return `${telling[0] || rounded[0]}\u00a0%`;
}
/** A probability that a model gives, as percent: it is never certain. */
export function sure(share, digits = 1) {
  const text = (100 * share).toFixed(digits);
  const step = 10 ** -digits;
  if (text >= 100) return `> ${(100 - step).toFixed(digits)}\u00a0%`;
  return text > 0 ? `${text}\u00a0%` : `< ${step.toFixed(digits)}\u00a0%`;
}
export const counted = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
