/** The page: the canvas holds what the network sees, whoever put it there. */

import { loadClassifier } from "./classifier.js";
import { prepare } from "./images.js";

const DEFAULT_MODEL = "../../saved_models/resnet20_fashion_mnist/model.tflite";
const TOP = 5;
/** Width of a stroke, as a share of the canvas: that of a sleeve. */
const STROKE = 1 / 12;

const [canvas, chooser, invertButton, clearButton, answers, status, samples] = [
  "canvas", "chooser", "invert", "clear", "answers", "status", "samples",
].map((id) => document.getElementById(id));
const context = canvas.getContext("2d", { willReadFrequently: true });
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1 });

const classifier = await loadClassifier(
  new URL(new URLSearchParams(location.search).get("model") ?? DEFAULT_MODEL, location.href),
).catch((error) => {
  say(error.message, true);
  throw error;
});

/**
 * Shows an image and what the network takes it for.
 *
 * @param {Blob} file
 * @returns {Promise<object>} `probabilities`, the `milliseconds` they took, and the `pixels` the network saw.
 */
export async function open(file) {
  const image = await prepare(file, classifier);
  context.putImageData(
    image,
    Math.ceil((canvas.width - image.width) / 2),
    Math.ceil((canvas.height - image.height) / 2),
  );
  return classify();
}

async function classify() {
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = Array.from(data).filter((_, i) => i % 4 < classifier.channels);
  const { probabilities, milliseconds } = await classifier.classify(pixels);
  const ranked = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
  answers.replaceChildren(...ranked.map((number) => answer(number, probabilities[number])));
  say(`${nameOf(ranked[0])}, in ${milliseconds.toFixed(1)} ms.`);
  return { probabilities, milliseconds, pixels };
}

function nameOf(number) {
  return classifier.names?.[number] ?? `Class ${number}`;
}

function answer(number, probability) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  const share = document.createElement("data");
  name.textContent = nameOf(number);
  share.textContent = percent.format(probability);
  share.value = probability;
  item.style.setProperty("--probability", probability);
  item.append(name, share);
  return item;
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function openGiven([file]) {
  if (file) {
    await open(file).catch((error) => say(`${file.name}: ${error.message}`, true));
  }
}

async function openSample(button) {
  await open(await (await fetch(button.firstChild.src)).blob());
}

function startStroke(event) {
  canvas.setPointerCapture(event.pointerId);
  canvas.addEventListener("pointermove", continueStroke);
  context.beginPath();
  context.moveTo(...toPixels(event));
  continueStroke(event);
}

function continueStroke(event) {
  const point = toPixels(event);
  context.lineTo(...point);
  context.stroke();
  context.beginPath();
  context.moveTo(...point);
}

async function endStroke() {
  canvas.removeEventListener("pointermove", continueStroke);
  await classify();
}

function toPixels({ offsetX, offsetY }) {
  return [(offsetX / canvas.clientWidth) * canvas.width, (offsetY / canvas.clientHeight) * canvas.height];
}

function clear() {
  context.fillRect(0, 0, canvas.width, canvas.height);
  answers.replaceChildren();
  say("Draw something.");
}

async function invert() {
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  image.data.forEach((value, i) => (image.data[i] = i % 4 < 3 ? 255 - value : value));
  context.putImageData(image, 0, 0);
  await classify();
}

canvas.width = classifier.width;
canvas.height = classifier.height;
Object.assign(context, { lineWidth: STROKE * canvas.width, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
canvas.addEventListener("pointerdown", startStroke);
canvas.addEventListener("lostpointercapture", endStroke);
chooser.addEventListener("change", () => openGiven(chooser.files));
invertButton.addEventListener("click", invert);
clearButton.addEventListener("click", clear);
for (const button of samples.children) {
  button.addEventListener("click", () => openSample(button));
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  openGiven(event.dataTransfer.files);
});
document.querySelectorAll(":disabled").forEach((control) => (control.disabled = false));
await openSample(samples.lastElementChild);
