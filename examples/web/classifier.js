/** A `.tflite` of keras_resdense: from pixels to probabilities. */

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

import { readAssociatedFile } from "./associated_files.js";
import { checkContract } from "./images.js";

const WASM = new URL(document.documentElement.dataset.litert, location.href);
const FORMATS = "Export it as tflite, tflite_float16, tflite_dynamic, tflite_int8 or tflite_int16x8.";
const ARRAYS = { float32: Float32Array, uint8: Uint8Array };
/** What one step of an 8-bit output is worth: TFLite fixes it for probabilities. */
const STEP = { float32: 1, uint8: 1 / 256 };

/**
 * Loads a network with the image contract and the names of the classes that its file holds.
 *
 * @param {URL} url Of the `.tflite`.
 * @returns {Promise<object>} The image `contract`, the `names` of the classes (null: numbers only), and `classify`,
 *   from pixels (RGBA, 0–255, of the contract's size) to `probabilities` and the `milliseconds` they took.
 * @throws {Error} If it is missing, damaged, has no contract, or takes something else.
 */
export async function loadClassifier(url) {
  const [file] = await Promise.all([fetchModel(url), loadLiteRt(WASM.href)]);
  if (!file.ok) {
    throw new Error(`There is no ${url.pathname}: train a network, or name another with ?model=…`);
  }
  const bytes = await file.arrayBuffer();
  const model = await compile(new Uint8Array(bytes), url);
  const [contract, labels] = await Promise.all(
    ["image_contract.json", "labels.txt"].map((name) => readAssociatedFile(bytes, name)),
  );
  if (!contract) {
    throw new Error(`${url.pathname} does not say how to prepare images: export it with this version.`);
  }
  const classifier = { contract: JSON.parse(contract), names: labels && labels.trimEnd().split("\n") };
  const [{ dtype, shape }] = model.getInputDetails();
  check(dtype, shape, classifier.contract, url);

  async function classify(pixels) {
    const start = performance.now();
    const images = new Tensor(ARRAYS[dtype].from(toInput(pixels, classifier.contract)), Array.from(shape));
    const [outputs] = await model.run([images]);
    const probabilities = Array.from(await outputs.data(), (value) => value * STEP[model.getOutputDetails()[0].dtype]);
    const milliseconds = performance.now() - start;
    images.delete();
    outputs.delete();
    return { probabilities, milliseconds };
  }

  const [height, width] = classifier.contract.size;
  // The first run is slow, whatever the image.
  await classify(new Uint8ClampedArray(4 * height * width));
  return { ...classifier, classify };
}

async function fetchModel(url) {
  try {
    return await fetch(url);
  } catch {
    throw new Error(`${url.pathname} cannot be fetched: is there a network?`);
  }
}

async function compile(bytes, url) {
  try {
    return await loadAndCompile(bytes, { accelerator: "wasm" });
  } catch (error) {
    throw new Error(`${url.pathname} cannot be run (${error.message}). ${FORMATS}`);
  }
}

/** Throws an Error if the network takes what the page cannot give. */
function check(dtype, shape, contract, url) {
  checkContract(contract);
  const promised = [1, ...contract.size, contract.channels].join(" × ");
  const taken = shape.join(" × ");
  if (promised !== taken || !(dtype in ARRAYS) || (dtype === "uint8" && !takesPixels(contract))) {
    throw new Error(
      `${url.pathname} takes ${taken} values of ${dtype}; its image contract promises ${promised}, and this page` +
        ` gives float32, or uint8 pixels. ${FORMATS}`,
    );
  }
}

function takesPixels({ mean, std }) {
  return mean.every((value) => value === 0) && std.every((value) => value === 1);
}

/** Takes the contract's channels out of RGBA, in its order, and normalises them. */
function toInput(pixels, { channels, order, mean, std }) {
  const input = new Float32Array((pixels.length / 4) * channels);
  for (let i = 0; i < input.length; i++) {
    const channel = i % channels;
    const source = order === "bgr" ? channels - 1 - channel : channel;
    const value = pixels[4 * Math.floor(i / channels) + source];
    input[i] = (value - mean[channel % mean.length]) / std[channel % std.length];
  }
  return input;
}
