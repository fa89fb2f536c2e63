/** Images made ready for a network as its image contract says. Pixels are RGBA, as a canvas has them. */

import { takeOrientation } from "./orientation.js";

/** What this page does to every image; a contract that asks for something else is refused. */
const SHARED = { orientation: "exif", transparency: "on white", antialias: true, rounding: "whole numbers" };
/** The kernels of Pillow's resizing: how far they reach, and their weights by distance. */
const KERNELS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - x) },
  bicubic: {
    reach: 2,
    weight(x) {
      if (x < 1) {
        return (1.5 * x - 2.5) * x * x + 1;
      }
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};
/** What turns a stored image upright, by its orientation: a canvas's transformation, moved by shares of its sides. */
const TURNS = [
  [1, 0, 0, 1, 0, 0],
  [-1, 0, 0, 1, 1, 0],
  [-1, 0, 0, -1, 1, 1],
  [1, 0, 0, -1, 0, 1],
  [0, 1, 1, 0, 0, 0],
  [0, 1, -1, 0, 1, 0],
  [0, -1, -1, 0, 1, 1],
  [0, -1, 1, 0, 0, 1],
];

/**
 * Decodes a file and brings the image to a network's size, with the pixels of `keras_resdense.transform`.
 *
 * @param {Blob} file
 * @param {object} contract An image contract, as `ImageContract.to_json` writes it.
 * @returns {Promise<ImageData>} Of the contract's size, whole numbers, not yet normalised.
 * @throws {Error} If it is no image that the browser opens.
 */
export async function prepare(file, contract) {
  return fit(await decode(file), contract);
}

/**
 * Brings an upright, opaque image to a network's size. Its pixels are changed.
 *
 * @param {ImageData} image
 * @param {object} contract As of `prepare`.
 * @returns {ImageData} As of `prepare`.
 */
export function fit(image, contract) {
  if (contract.channels === 1) {
    turnGrey(image.data);
  }
  const old = [image.height, image.width];
  const resized = resizedSides(old, contract);
  // Pillow starts with the rows where they shrink much more than the columns.
  const rowsFirst = old[0] > resized[0] && old[0] - resized[0] > 2 * (old[1] - resized[1]);
  const { data } = (rowsFirst ? [0, 1] : [1, 0]).reduce(
    (part, axis) => resample(part, axis, resized[axis], contract.size[axis], KERNELS[contract.interpolation]),
    image,
  );
  return new ImageData(data, contract.size[1], contract.size[0]);
}

/** Throws an Error if an image contract asks for something that this page does not do. */
export function checkContract(contract) {
  const wrong = Object.keys(SHARED).filter((name) => contract[name] !== SHARED[name]);
  if (wrong.length || !(contract.interpolation in KERNELS) || !["squash", "shorter_side"].includes(contract.resize)) {
    throw new Error(`This page cannot prepare images as the network's file asks: ${JSON.stringify(contract)}`);
  }
}

async function decode(file) {
  const bytes = await file.arrayBuffer();
  const orientation = takeOrientation(bytes);
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes]), options);
  const sides = [bitmap.width, bitmap.height];
  const [width, height] = orientation < 5 ? sides : sides.reverse();
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  const [a, b, c, d, right, down] = TURNS[orientation - 1];
  context.setTransform(a, b, c, d, right * width, down * height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

function turnGrey(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    pixels.fill(Math.round(0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2]), i, i + 3);
  }
}

/** Returns height and width before the central crop, as torchvision computes them. */
function resizedSides(old, { size, resize, crop }) {
  // The small number keeps a share such as 224 / 232 from costing a pixel.
  const wanted = size.map((side) => Math.floor(side / crop + 1e-6));
  if (resize === "squash") {
    return wanted;
  }
  const scales = wanted.map((side, axis) => side / old[axis]);
  const decisive = Math.max(...scales);
  return wanted.map((side, axis) => {
    const other = Math.trunc((wanted[1 - axis] * old[axis]) / old[1 - axis]);
    return scales[axis] === decisive ? side : Math.max(side, other);
  });
}

function roundHalfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

/**
 * Resizes an image along an axis (0: fewer or more rows) and keeps the middle, as Pillow does: means weighted by a
 * kernel that reaches over the pixels of the larger kind, rounded to whole numbers.
 */
function resample({ data, width, height }, axis, length, size, kernel) {
  const [old, lines] = axis === 1 ? [width, height] : [height, width];
  const [outWidth, outHeight] = axis === 1 ? [size, height] : [width, size];
  // From a pixel to the next along the axis, and across it.
  const [along, across] = axis === 1 ? [4, 4 * width] : [4 * width, 4];
  const [outAlong, outAcross] = axis === 1 ? [4, 4 * outWidth] : [4 * outWidth, 4];
  const first = roundHalfToEven((length - size) / 2);
  const scale = old / length;
  const stretch = Math.max(scale, 1);
  const resampled = new Uint8ClampedArray(4 * outWidth * outHeight);
  for (let i = 0; i < size; i++) {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - kernel.reach * stretch + 0.5));
    const end = Math.min(old, Math.floor(centre + kernel.reach * stretch + 0.5));
    const weights = Float64Array.from({ length: end - start }, (_, k) =>
      kernel.weight(Math.abs(start + k + 0.5 - centre) / stretch),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 4; channel++) {
        let place = start * along + line * across + channel;
        let sum = 0;
        for (let k = 0; k < weights.length; k++, place += along) {
          sum += weights[k] * data[place];
        }
        resampled[i * outAlong + line * outAcross + channel] = Math.floor(sum / total + 0.5);
      }
    }
  }
  return { data: resampled, width: outWidth, height: outHeight };
}
