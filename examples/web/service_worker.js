/**
 * Keeps the built page on the device, so that it answers without a network. `build.js` says which files there are, and
 * a VERSION that changes with them.
 */

/* global FILES, VERSION */

import { supportsFeature } from "@litertjs/core";

// An origin may have many pages like this one.
const [name, mine] = [`${registration.scope} ${VERSION}`, `${registration.scope} `];

async function keep() {
  // LiteRT.js chooses by the same question. One of the two is 9 MB.
  const kind = (await supportsFeature("relaxedSimd")) ? "" : "compat_";
  const runtime = ["js", "wasm"].map((suffix) => `litert/litert_wasm_${kind}internal.${suffix}`);
  const files = [...FILES, ...runtime].map((file) => new Request(file, { cache: "no-cache" }));
  await (await caches.open(name)).addAll(files);
  await skipWaiting();
}

async function replaceOlder() {
  const older = (await caches.keys()).filter((other) => other.startsWith(mine) && other !== name);
  await Promise.all(older.map((other) => caches.delete(other)));
  await clients.claim();
}

async function answer(request) {
  const kept = await (await caches.open(name)).match(request, { ignoreSearch: true });
  return kept ?? fetch(request);
}

addEventListener("install", (event) => event.waitUntil(keep()));
addEventListener("activate", (event) => event.waitUntil(replaceOlder()));
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
