// What the page asks at a server: the API around it. Its other home, a static site, has another classifier.js.

const NEIGHBOURS = 6;
let token = sessionStorage.getItem("token") || "";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers }, cache: "no-store" });
  if (response.status === 401) {
    const error = new Error("this server needs a token");
    error.name = "TokenError";
    throw error;
  }
  return response;
}

/** Remember the token for as long as the page is open. */
export function takeToken(text) {
  token = text;
  sessionStorage.setItem("token", token);
}

/** The models that are served, as GET /models describes them. */
export const models = async () => (await (await ask("models")).json()).models;

/** What there is to say about a photo (a File). */
export async function classify(photo, model) {
  const query = model.neighbours ? `?neighbours=${NEIGHBOURS}` : "";
  const path = `models/${encodeURIComponent(model.name)}/predict${query}`;
  const response = await ask(path, { method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" } });
  const answer = await response.json();
  return answer.predictions ? answer.predictions[0] : { error: answer.error };
}

/** Where the photos go, and what is shown beside them. */
export const note = (model) => "Photos go to this server only, and are not kept there. " + (model.neighbours
  ? "Thumbnails of the training images were kept; the nearest are shown."
  : "Thumbnails of the training images were not kept, so none are shown.");

/** Address of the API's documentation. */
export const documentation = "docs";
