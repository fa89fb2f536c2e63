/** Files inside of a `.tflite`: TFLite Metadata appends them as a ZIP archive. */

const END_OF_DIRECTORY = 0x06054b50;
const END_OF_DIRECTORY_SIZE = 22;
const STORED = 0;

/**
 * Reads one of them.
 *
 * @param {ArrayBuffer} model
 * @param {string} name
 * @returns {Promise<?string>} Its text; null where there is none of that name.
 */
export async function readAssociatedFile(model, name) {
  const view = new DataView(model);
  const entry = [...entries(view)].find((entry) => entry.name === name);
  if (!entry) {
    return null;
  }
  // The lengths of the name and of the extra field may differ from those in the directory.
  const start = entry.place + 30 + view.getUint16(entry.place + 26, true) + view.getUint16(entry.place + 28, true);
  const content = new Blob([model.slice(start, start + entry.size)]);
  if (entry.method === STORED) {
    return content.text();
  }
  return new Response(content.stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
}

function* entries(view) {
  const end = findEnd(view);
  if (end === null) {
    return;
  }
  let place = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((offset) => view.getUint16(place + offset, true));
    yield {
      name: new TextDecoder().decode(new Uint8Array(view.buffer, place + 46, nameLength)),
      method: view.getUint16(place + 10, true),
      size: view.getUint32(place + 20, true),
      place: view.getUint32(place + 42, true),
    };
    place += 46 + nameLength + extraLength + commentLength;
  }
}

function findEnd(view) {
  const longestComment = 0xffff;
  const last = view.byteLength - END_OF_DIRECTORY_SIZE;
  for (let place = last; place >= Math.max(0, last - longestComment); place--) {
    if (view.getUint32(place, true) === END_OF_DIRECTORY) {
      return place;
    }
  }
  return null;
}
