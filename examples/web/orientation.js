/** The orientation that an image file's EXIF block states, read as the package reads it. Browsers differ in which they see. */

const ORIENTATION_TAG = 0x0112;
const SHORT = 3;
const LONG = 4;
const [PNG, RIFF, EXIF] = ["\x89PNG\r\n\x1a\n", "RIFF", "Exif\0\0"];

/**
 * Reads the orientation and erases it, so that no browser obeys it, too.
 *
 * @param {ArrayBuffer} file Is changed.
 * @returns {number} 1 to 8; 1 where there is none, or none that can be read.
 */
export function takeOrientation(file) {
  try {
    const entry = findEntry(findExif(new DataView(file)));
    return entry ? takeValue(entry) : 1;
  } catch (error) {
    if (error instanceof RangeError) {
      return 1; // The file is cut off.
    }
    throw error;
  }
}

function findExif(view) {
  if (hasText(view, 0, "\xff\xd8")) {
    return findInJpeg(view);
  }
  if (hasText(view, 0, PNG)) {
    return findChunk(view, { start: 8, name: "eXIf", nameFirst: false, littleEndian: false, extra: 4 });
  }
  if (hasText(view, 0, RIFF) && hasText(view, 8, "WEBP")) {
    return findChunk(view, { start: 12, name: "EXIF", nameFirst: true, littleEndian: true, extra: 0 });
  }
  return null;
}

function findInJpeg(view) {
  for (let place = 2; ; ) {
    const code = view.getUint8(place + 1);
    if (view.getUint8(place) !== 0xff || code === 0xff || code === 0) {
      place += 1;
    } else if (code === 0xd9 || code === 0xda) {
      return null; // The end, or the pixels.
    } else if (code === 0x01 || (code >= 0xd0 && code <= 0xd8)) {
      place += 2; // A marker without a segment.
    } else {
      const length = view.getUint16(place + 2);
      if (code === 0xe1 && hasText(view, place + 4, EXIF)) {
        return part(view, place + 10, length - 8);
      }
      place += 2 + Math.max(length, 2);
    }
  }
}

function findChunk(view, { start, name, nameFirst, littleEndian, extra }) {
  for (let place = start; place + 8 <= view.byteLength; ) {
    const length = view.getUint32(place + (nameFirst ? 4 : 0), littleEndian);
    if (hasText(view, place + (nameFirst ? 0 : 4), name)) {
      return part(view, place + 8, length);
    }
    place += 8 + length + extra + (nameFirst ? length % 2 : 0);
  }
  return null;
}

function findEntry(block) {
  const start = block && hasText(block, 0, EXIF) ? 6 : 0; // WebP's may have JPEG's header.
  const littleEndian = block && hasText(block, start, "II*\0");
  if (!block || (!littleEndian && !hasText(block, start, "MM\0*"))) {
    return null;
  }
  const directory = start + block.getUint32(start + 4, littleEndian);
  for (let place = directory + 2, left = block.getUint16(directory, littleEndian); left > 0; place += 12, left--) {
    if (block.getUint16(place, littleEndian) === ORIENTATION_TAG) {
      return { block, place, littleEndian };
    }
  }
  return null;
}

function takeValue({ block, place, littleEndian }) {
  const kind = block.getUint16(place + 2, littleEndian);
  const value = kind === LONG ? block.getUint32(place + 8, littleEndian) : block.getUint16(place + 8, littleEndian);
  block.setUint32(place + 8, 0);
  return [SHORT, LONG].includes(kind) && value >= 1 && value <= 8 ? value : 1;
}

function part(view, start, length) {
  return new DataView(view.buffer, start, Math.max(0, Math.min(length, view.byteLength - start)));
}

function hasText(view, place, text) {
  return place + text.length <= view.byteLength && [...text].every((letter, i) => view.getUint8(place + i) === letter.charCodeAt(0));
}
