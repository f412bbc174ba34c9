// What the page asks in a static site: the model, in this browser. Its other home, the server, has another classifier.js.

import * as ort from "./ort.wasm.min.mjs";
import { decode } from "./decoding.js";
import { tilesIn, toInput } from "./pixels.js";

async function open() {
  const spec = await (await fetch("model.json")).json();
  const model = await (await fetch("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(model));
  async function run(source) {
    const pixels = toInput(await decode(source, spec), spec);
    return session.run({ image: new ort.Tensor("uint8", pixels, [1, tilesIn(spec) * spec.size, spec.size, 3]) });
  }
  const byClass = ({ probabilities }) => spec.classes.map((name, number) => ({ name, probability: probabilities.data[number] }));
  /** Probabilities of a photo (Blob), or of anything that can be drawn, in the order of the classes. */
  const classify = async (source) => byClass(await run(source));
  /** The same, the most probable first, and where the model tells, how strange it is and whether it is of no class. */
  async function answer(source) {
    const outputs = await run(source);
    const classes = byClass(outputs).map(({ name, probability }) => ({ label: name, probability }));
    classes.sort((a, b) => b.probability - a.probability);
    const strangeness = outputs.strangeness?.data[0];
    const more = strangeness === undefined ? {} : { strangeness, none_of_these: strangeness > spec.strangeness.threshold };
    const given = ({ label, probability }) => probability >= spec.thresholds[label];
    if (spec.thresholds) more.labels = classes.filter(given).map(({ label }) => label);
    return { ...classes[0], classes, ...more };
  }
  return { spec, classify, answer };
}

const opened = open();
window.quickstudy = { classify: async (source) => (await opened).classify(source) };

/** The models that there are, as the server's GET /models describes them; here it is one. */
export async function models() {
  const { spec } = await opened;
  return [{ name: spec.title, classes: spec.classes, test: spec.test, thresholds: spec.thresholds }];
}

/** What there is to say about a photo (a File), in the form of the server's answers. */
export async function classify(photo) {
  try {
    return await (await opened).answer(photo);
  } catch (error) {
    return { error: error.message };
  }
}

/** Where the photos go. */
export const note = () => "Photos are classified in this browser. They are not sent anywhere.";
