/** Images made ready for a network as `keras-resdense predict` does it. Pixels are RGBA, as a canvas has them. */

/**
 * Decodes a file, lays what is transparent on white and brings the image to a network's size.
 *
 * @param {Blob} file
 * @param {object} classifier Its `height`, `width`, `channels` and `recipe`.
 * @returns {Promise<ImageData>} At least of that size; the network looks at the middle.
 * @throws {DOMException} If it is no image.
 */
export async function prepare(file, { height, width, channels, recipe }) {
  const image = await decode(file);
  if (channels === 1) {
    turnGrey(image.data);
  }
  let size = [width, height];
  if (recipe.crop !== "none") {
    const scale = Math.max(width / image.width, height / image.height) / recipe.test_crop;
    size = [image.width, image.height].map((side, axis) => Math.max(size[axis], Math.round(side * scale)));
  }
  const resized = resample(resample(image, size[0]), size[1]);
  return new ImageData(new Uint8ClampedArray(resized.data), ...size);
}

async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function turnGrey(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    pixels.fill(Math.round(0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2]), i, i + 3);
  }
}

/**
 * Brings the rows to another length, as `tf.image.resize` with antialiasing does (means weighted by a triangle that
 * reaches over one pixel of the larger kind), and transposes, so that a second call does the columns.
 */
function resample({ data, width, height }, length) {
  const scale = width / length;
  const reach = Math.max(scale, 1);
  const resampled = new Float32Array(4 * length * height);
  for (let x = 0; x < length; x++) {
    const centre = (x + 0.5) * scale - 0.5;
    const first = Math.max(0, Math.ceil(centre - reach));
    const last = Math.min(width - 1, Math.floor(centre + reach));
    const weights = Array.from({ length: last - first + 1 }, (_, i) => 1 - Math.abs(first + i - centre) / reach);
    const total = weights.reduce((sum, weight) => sum + weight);
    for (let y = 0; y < height; y++) {
      for (let channel = 0; channel < 4; channel++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) {
          sum += weights[i] * data[4 * (y * width + first + i) + channel];
        }
        resampled[4 * (x * height + y) + channel] = sum / total;
      }
    }
  }
  return { data: resampled, width: height, height: length };
}
