/** A `.tflite` of keras_resdense: from pixels to probabilities. */

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

const WASM = new URL("node_modules/@litertjs/core/wasm/", import.meta.url);
/** What a file not made by a training run is prepared like; see `keras_resdense.training.recipes.Recipe`. */
const DEFAULT_RECIPE = { crop: "none" };
const FORMATS = "Export it as tflite, tflite_float16, tflite_dynamic or tflite_int16x8.";

/**
 * Loads a network, and what lies beside it: `labels.txt`, the classes' names, and `recipe.json`.
 *
 * @param {URL} url Of the `.tflite`.
 * @returns {Promise<object>} `names` of the classes (null: numbers only), the `recipe` for preparing images, the
 *   size of an image, `height`, `width` and `channels`, and `classify`, from pixels (height × width × channels, 0–255)
 *   to `probabilities` and the `milliseconds` they took.
 * @throws {Error} If it is missing, damaged or takes something else.
 */
export async function loadClassifier(url) {
  const [file, labels, run] = await Promise.all([
    fetch(url),
    fetch(new URL("labels.txt", url)),
    fetch(new URL("recipe.json", url)),
    loadLiteRt(WASM.href),
  ]);
  if (!file.ok) {
    throw new Error(`There is no ${url.pathname}: train a network, or name another with ?model=…`);
  }
  const model = await compile(new Uint8Array(await file.arrayBuffer()), url);
  const [{ dtype, shape }] = model.getInputDetails();
  const [height, width, channels] = shape.slice(1);
  if (dtype !== "float32" || ![1, 3].includes(channels)) {
    throw new Error(
      `${url.pathname} takes ${channels} channels of ${dtype}; this page gives 1 or 3 of float32. ${FORMATS}`,
    );
  }

  async function classify(pixels) {
    const start = performance.now();
    const images = new Tensor(Float32Array.from(pixels), [1, height, width, channels]);
    const [outputs] = await model.run([images]);
    const probabilities = Array.from(await outputs.data());
    const milliseconds = performance.now() - start;
    images.delete();
    outputs.delete();
    return { probabilities, milliseconds };
  }

  // The first run is slow, whatever the image.
  await classify(new Uint8Array(height * width * channels));
  const names = labels.ok ? (await labels.text()).trimEnd().split("\n") : null;
  const recipe = run.ok ? (await run.json()).recipe : DEFAULT_RECIPE;
  return { names, recipe, height, width, channels, classify };
}

async function compile(bytes, url) {
  try {
    return await loadAndCompile(bytes, { accelerator: "wasm" });
  } catch (error) {
    throw new Error(`${url.pathname} cannot be run (${error.message}). ${FORMATS}`);
  }
}
