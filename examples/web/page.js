/** The page: the canvas holds what the network sees, whoever put it there. */

import { openCamera } from "./camera.js";
import { loadClassifier } from "./classifier.js";
import { fit, prepare } from "./images.js";

const TOP = 5;
/** Names of classes that are shown; of the rest, the number. */
const SHOWN_NAMES = 20;
/** Width of a stroke, as a share of the canvas: that of a sleeve. */
const STROKE = 1 / 12;

const [canvas, hint, cameraButton, chooser, invertButton, clearButton, answers, status, offline, classes, samples] = [
  "canvas", "hint", "camera", "chooser", "invert", "clear", "answers", "status", "offline", "classes", "samples",
].map((id) => document.getElementById(id));
const context = canvas.getContext("2d", { willReadFrequently: true });
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1 });

const classifier = await loadClassifier(
  new URL(new URLSearchParams(location.search).get("model") ?? document.documentElement.dataset.model, location.href),
).catch((error) => {
  fail(error.message);
  throw error;
});
/** Grey networks learned from what can be drawn; those for colours, from photographs. */
const drawable = classifier.contract.channels === 1;
/** Counts what was opened or drawn, for an image may take longer than the next one. */
let latest = 0;
/** The camera while it is watched, else null. */
let camera = null;

/**
 * Shows an image and what the network takes it for.
 *
 * @param {Blob} file
 * @returns {Promise<object>} `probabilities`, the `milliseconds` they took, and the `pixels` the network saw.
 */
export async function open(file) {
  const turn = ++latest;
  const image = await prepare(file, classifier.contract);
  if (turn === latest) {
    context.putImageData(image, 0, 0);
  }
  return answer(image.data, turn);
}

async function answer(pixels, turn) {
  const { probabilities, milliseconds } = await classifier.classify(pixels);
  if (turn === latest) {
    const ranked = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, TOP);
    answers.replaceChildren(...ranked.map((number) => listItem(number, probabilities[number])));
    say(`${nameOf(ranked[0])}, in ${milliseconds.toFixed(1)} ms.`);
  }
  return { probabilities, milliseconds, pixels: Array.from(pixels) };
}

function answerCanvas() {
  return answer(context.getImageData(0, 0, canvas.width, canvas.height).data, ++latest);
}

function nameOf(number) {
  return classifier.names?.[number] ?? `Class ${number}`;
}

function listItem(number, probability) {
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

function say(text) {
  status.textContent = text;
  status.classList.remove("error");
}

/** Shows what went wrong, and no answer beside it. */
function fail(text) {
  answers.replaceChildren();
  status.textContent = text;
  status.classList.add("error");
}

async function openGiven(file, name) {
  closeCamera();
  const turn = latest + 1;
  await open(file).catch((error) => {
    if (turn === latest) {
      blank();
      fail(`${name}: ${error.message}`);
    }
  });
}

async function openFirst([file]) {
  if (file) {
    await openGiven(file, file.name);
  }
}

async function openSample(button) {
  await openGiven(await (await fetch(button.firstChild.src)).blob(), button.firstChild.alt);
}

async function toggleCamera() {
  if (camera) {
    closeCamera();
    return;
  }
  const turn = ++latest;
  try {
    const opened = await openCamera(closeCamera);
    if (turn !== latest) {
      opened.close(); // An image was opened meanwhile.
      return;
    }
    camera = opened;
    showCamera();
    while (camera === opened) {
      const image = fit(camera.frame(), classifier.contract);
      context.putImageData(image, 0, 0);
      await answer(image.data, ++latest);
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    if (camera || turn === latest) {
      closeCamera();
      blank();
      fail(error.message);
    }
  }
}

function closeCamera() {
  camera?.close();
  camera = null;
  showCamera();
}

function showCamera() {
  cameraButton.ariaPressed = Boolean(camera);
  cameraButton.textContent = camera ? "Stop" : "Camera";
  // Nobody wants to hear of every frame.
  status.ariaLive = camera ? "off" : "polite";
}

function startStroke(event) {
  closeCamera();
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
  await answerCanvas();
}

function toPixels({ offsetX, offsetY }) {
  return [(offsetX / canvas.clientWidth) * canvas.width, (offsetY / canvas.clientHeight) * canvas.height];
}

function blank() {
  latest++;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function clear() {
  closeCamera();
  blank();
  answers.replaceChildren();
  say(drawable ? "Draw something, or open an image." : "Open an image, or start the camera.");
}

async function invert() {
  closeCamera();
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  image.data.forEach((value, i) => (image.data[i] = i % 4 < 3 ? 255 - value : value));
  context.putImageData(image, 0, 0);
  await answerCanvas();
}

/** Says what the network can tell apart: whatever else it is shown, it answers with one of these. */
function describeClasses() {
  const names = classifier.names ?? [];
  const more = names.length - SHOWN_NAMES;
  classes.textContent = names.length
    ? `This network can tell apart: ${names.slice(0, SHOWN_NAMES).join(", ")}${more > 0 ? `, and ${more} more` : ""}.`
    : "This network's file does not name its classes.";
}

/** Has a built page kept on the device; the one in the repository changes too often for that. */
async function keepOnDevice() {
  if (document.querySelector("link[rel=manifest]") && navigator.serviceWorker) {
    await navigator.serviceWorker.register("service_worker.js");
    await navigator.serviceWorker.ready;
    offline.textContent = "This page now works without a network, too.";
  }
}

[canvas.height, canvas.width] = classifier.contract.size;
describeClasses();
Object.assign(context, { lineWidth: STROKE * canvas.width, lineCap: "round", lineJoin: "round", strokeStyle: "white" });
if (drawable) {
  hint.textContent = "Draw on it, or drop a file anywhere.";
  canvas.classList.add("drawable");
  canvas.addEventListener("pointerdown", startStroke);
  canvas.addEventListener("lostpointercapture", endStroke);
}
invertButton.hidden = !drawable;
cameraButton.addEventListener("click", toggleCamera);
document.addEventListener("visibilitychange", () => document.hidden && closeCamera());
chooser.addEventListener("change", () => openFirst(chooser.files));
invertButton.addEventListener("click", invert);
clearButton.addEventListener("click", clear);
for (const button of samples?.children ?? []) {
  button.addEventListener("click", () => openSample(button));
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  openFirst(event.dataTransfer.files);
});
document.querySelectorAll(":disabled").forEach((control) => (control.disabled = false));
if (samples && drawable) {
  await openSample(samples.lastElementChild);
} else {
  // The samples are grey: a network for colours has learned nothing like them.
  samples?.parentElement.remove();
  clear();
}
await keepOnDevice();
