// What the page asks in a static site: the model, in this browser. Its other home, the server, has another classifier.js.

import * as ort from "./ort.wasm.min.mjs";
import { decode } from "./decoding.js";
import { asScript, bytesOf, textOf } from "./files.js";
import { tilesIn, toInput } from "./pixels.js";
import * as teaching from "./teach.js";

/** What is behind the end of a model's bytes makes one of its tensors an output, as models/properties.py has it. */
function withOutput(model, { output }) {
  const more = Uint8Array.from(atob(output), (letter) => letter.charCodeAt(0)), all = new Uint8Array(model.length + more.length);
  all.set(model);
  all.set(more, model.length);
  return all;
}

async function open() {
  const spec = JSON.parse(textOf("model.json")), { teaching: taught } = spec;
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: asScript(textOf("ort-wasm-simd-threaded.mjs")) };
  ort.env.wasm.wasmBinary = await bytesOf("ort-wasm-simd-threaded.wasm");
  const model = await bytesOf("model.onnx");
  const session = await ort.InferenceSession.create(taught ? withOutput(model, taught) : model);
  async function run(source) {
    const pixels = toInput(await decode(source, spec), spec);
    return session.run({ image: new ort.Tensor("uint8", pixels, [1, tilesIn(spec) * spec.size, spec.size, 3]) });
  }
  const byClass = ({ probabilities }) => spec.classes.map((name, number) => ({ name, probability: probabilities.data[number] }));
  /** Probabilities of a photo (Blob), or of anything that can be drawn, in the order of the classes. */
  const classify = async (source) => byClass(await run(source));
  /** What the head of taught classes sees of a photo. */
  const features = async (source) => (await run(source))[taught.tensor].data.slice(0, taught.widths.reduce((sum, width) => sum + width));
  const answerTaught = async (source) => {
    const classes = teaching.classify(await features(source));
    return { ...classes[0], classes };
  };
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
  return { spec, classify, answer, answerTaught, features };
}

const opened = open();
window.quickstudy = {
  classify: async (source) => (await opened).classify(source),
  classifyTaught: async (source) => (await opened).answerTaught(source),
};

/** The models that there are, as the server's GET /models describes them: the site's, and what was taught on the page. */
export async function models() {
  const { spec } = await opened, taught = teaching.model();
  return [{ name: spec.title, classes: spec.classes, test: spec.test, thresholds: spec.thresholds }, ...(taught ? [taught] : [])];
}

/** Lets the page be taught where the site may be; `changed` is called with the name of what should be asked then. */
export async function begin(changed) {
  const { spec, features } = await opened;
  if (spec.teaching) teaching.begin(spec.teaching, features, textOf("classes.json"), () => changed(teaching.model()?.name));
}

/** What there is to say about a photo (a File), in the form of the server's answers. */
export async function classify(photo, model) {
  try {
    const { answer, answerTaught } = await opened;
    return await (model.taught ? answerTaught : answer)(photo);
  } catch (error) {
    return { error: error.message };
  }
}

/** Where the photos go. */
export const note = () => "Photos are classified in this browser. They are not sent anywhere.";
