/* Service worker: keeps all files of this folder, and no others, so that the page works offline.

The version is the digest of the export. A new export has a new version, and is kept in a cache of its own. */

const VERSION = "shvit-sha256:0000000000000000000000000000000000000000000000000000000000000000";
const FILES = [
  "",
  "app.js",
  "camera.js",
  "check.js",
  "model.json",
  "model.onnx",
  "objects.js",
  "ort/ort-wasm-simd-threaded.mjs",
  "ort/ort-wasm-simd-threaded.wasm",
  "ort/ort.wasm.min.mjs",
  "pixels.js",
  "sample.png",
  "style.css",
  "worker.js",
];
/* Kept when they are first used: many browsers do not need these large files. */
const FOR_WEBGPU = [
  "ort/ort-wasm-simd-threaded.asyncify.mjs",
  "ort/ort-wasm-simd-threaded.asyncify.wasm",
  "ort/ort.webgpu.min.mjs",
];

const SCOPE = self.registration.scope;
const CACHE = `${SCOPE} ${VERSION}`;

self.addEventListener("install", event => event.waitUntil(install()));

async function install() {
  const cache = await caches.open(CACHE), addresses = FILES.map(name => new URL(name, SCOPE).href);
  const missing = [];
  for (const address of addresses)  // the page has already put the large files there
    if (!(await cache.match(address))) missing.push(address);
  // "no-cache" asks the server whether a file has changed: what the browser has is not sent again
  await cache.addAll(missing.map(address => new Request(address, { cache: "no-cache" })));
}

self.addEventListener("activate", event => event.waitUntil(activate()));

async function activate() {
  const old = (await caches.keys()).filter(name => name.startsWith(`${SCOPE} `) && name !== CACHE);
  await Promise.all(old.map(name => caches.delete(name)));
  await self.clients.claim();
}

self.addEventListener("message", event => {
  if (event.data === "activate") self.skipWaiting();
});

self.addEventListener("fetch", event => {
  const address = event.request.url.replace(/[?#].*$/, "");
  if (event.request.method !== "GET" || !address.startsWith(SCOPE)) return;
  const name = address.slice(SCOPE.length).replace(/^index\.html$/, "");
  if (FILES.includes(name) || FOR_WEBGPU.includes(name)) event.respondWith(answer(event.request, name));
});

async function answer(request, name) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(new URL(name, SCOPE));
  if (kept) return kept;
  const response = await fetch(request);
  if (response.ok && FOR_WEBGPU.includes(name)) await cache.put(new URL(name, SCOPE), response.clone());
  return response;
}
