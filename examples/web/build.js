/**
 * Makes a page of its own from a run: a folder of static files that any host can serve, and that phones can install.
 *
 *     npm run build                                    the committed ResNet-20 and its samples
 *     npm run build -- RUN --title "Cat or dog?"       a run's folder, or a .tflite
 *     npm run build -- RUN --to public                 into another folder than dist/
 */

import { createHash } from "node:crypto";
import { cp, mkdir, readFile, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";

import { build } from "esbuild";

import { readAssociatedFile } from "./associated_files.js";

const HERE = import.meta.dirname;
const DEFAULT_RUN = path.join(HERE, "../../saved_models/resnet20_fashion_mnist");
const LITERT = path.join(HERE, "node_modules/@litertjs/core/wasm");
const ICONS = [192, 512];
/** What stands in `index.html` for the page in this folder, and what for a built one. */
const HEAD = [
  [/<script type="importmap">.*?<\/script>/s, '<link rel="manifest" href="manifest.json">'],
  [/ data-model="[^"]*"/, ' data-model="model.tflite"'],
  [/ data-litert="[^"]*"/, ' data-litert="litert/"'],
  [/\s+onerror="[^"]*"/, ""],
  [/href="samples\/[^"]*"/, 'href="icons/192.png"'],
];
const SAMPLES = [/<!-- samples -->.*?<!-- end -->/gs, ""];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { title: { type: "string", default: "What is it?" }, to: { type: "string", default: path.join(HERE, "dist") } },
});
// npm starts scripts in this folder; people mean the folder that they are in.
const given = (name) => path.resolve(process.env.INIT_CWD ?? ".", name);

await main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});

async function main() {
  const [run] = positionals;
  const model = await readModel(run ? given(run) : DEFAULT_RUN);
  const goal = given(values.to);
  await checkFolder(goal);
  // An older page stays until all of the new one is written.
  const folder = `${goal}.building`;
  await rm(folder, { recursive: true, force: true });
  await mkdir(path.join(folder, "litert"), { recursive: true });

  await build({ entryPoints: [path.join(HERE, "page.js")], outdir: folder, bundle: true, minify: true, format: "esm" });
  for (const kind of ["", "compat_"]) {
    for (const suffix of ["js", "wasm"]) {
      const file = `litert_wasm_${kind}internal.${suffix}`;
      await cp(path.join(LITERT, file), path.join(folder, "litert", file));
    }
  }
  for (const part of ["style.css", "icons", ...(run ? [] : ["samples"])]) {
    await cp(path.join(HERE, part), path.join(folder, part), { recursive: true });
  }
  await writeFile(path.join(folder, "model.tflite"), model.bytes);
  await writeFile(path.join(folder, "index.html"), await page(!run));
  await writeFile(path.join(folder, "manifest.json"), JSON.stringify(manifest(model.names), null, 2));
  await writeServiceWorker(folder);
  await rm(goal, { recursive: true, force: true });
  await rename(folder, goal);
  console.log(`${goal} is ready. Copy it to any static host with https, or try it on this computer:`);
  console.log(`  python -m http.server --directory ${path.relative(given("."), goal)}`);
}

/** Reads a network; one that the page would refuse is refused here. */
async function readModel(found) {
  const file = (await stat(found).catch(() => null))?.isDirectory() ? path.join(found, "model.tflite") : found;
  const bytes = await readFile(file).catch(() => {
    throw new Error(`There is no ${file}. Say the folder of a run, or a .tflite.`);
  });
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  if (!(await readAssociatedFile(buffer, "image_contract.json"))) {
    throw new Error(`${file} does not say how to prepare images. Export it with keras_resdense, as tflite.`);
  }
  return { bytes, names: (await readAssociatedFile(buffer, "labels.txt"))?.trimEnd().split("\n") ?? [] };
}

/** Throws an Error if a folder holds what no earlier build has made. */
async function checkFolder(folder) {
  const found = await readdir(folder).catch(() => []);
  if (found.length && !(found.includes("service_worker.js") && found.includes("manifest.json"))) {
    throw new Error(`${folder} holds other files. Name a new folder with --to.`);
  }
}

async function page(withSamples) {
  const title = values.title.replace(/[&<>]/g, (letter) => `&#${letter.charCodeAt(0)};`);
  let text = await readFile(path.join(HERE, "index.html"), "utf-8");
  for (const [from, to] of [...HEAD, ...(withSamples ? [] : [SAMPLES])]) {
    text = text.replace(from, () => to);
  }
  return text.replaceAll("What is it?", () => title);
}

function manifest(names) {
  const icons = ICONS.flatMap((side) =>
    ["any", "maskable"].map((purpose) => ({
      src: `icons/${side}.png`, sizes: `${side}x${side}`, type: "image/png", purpose,
    })),
  );
  return {
    name: values.title,
    short_name: values.title,
    description: `Tells apart: ${names.join(", ")}.`,
    start_url: "./",
    scope: "./",
    display: "standalone",
    background_color: "#f6f6f3",
    theme_color: "#f6f6f3",
    icons,
  };
}

async function writeServiceWorker(folder) {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const found = entries.filter((entry) => entry.isFile()).map((entry) => path.join(entry.parentPath, entry.name));
  const files = found.map((file) => path.relative(folder, file).split(path.sep).join("/")).sort();
  const hash = createHash("sha256");
  for (const file of files) {
    hash.update(file).update(await readFile(path.join(folder, file)));
  }
  const kept = ["./", ...files.filter((file) => !file.startsWith("litert/"))];
  await build({
    entryPoints: [path.join(HERE, "service_worker.js")],
    outdir: folder,
    bundle: true,
    minify: true,
    define: { FILES: JSON.stringify(kept), VERSION: JSON.stringify(hash.digest("hex").slice(0, 12)) },
  });
}
