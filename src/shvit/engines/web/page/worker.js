/* Runs the model, so that the page stays responsive. Messages of the page: { id, picture }, a Blob or an ImageBitmap.

Messages to the page:
  { loading }        share of the model that is loaded, from 0 to 1
  { ready }          { facts, difference, passed, runsOn }, once
  { kept }           when the service worker may start
  { runsOn }         when a faster way to run the model was found
  { id, found }      { results, width, height, reduced, milliseconds }
  { id, problem }    why a picture, or without id the model, cannot be used */

import * as ort from "./ort/ort.wasm.min.mjs";
import { TOLERANCES, difference } from "./check.js";
import { decode, reduce, rgbOf } from "./pixels.js";

const FOLDER = new URL("ort/", import.meta.url).href;
const MODEL = "model.onnx", WASM = "ort/ort-wasm-simd-threaded.wasm";
const MOST_THREADS = 8;
const TIMED = 5;
/* WebGPU must be faster by this factor, because it may be slower while the page draws. */
const GAIN = 1.1;

let runtime;  // { session, Tensor, name }
let last;  // settles when the last picture is done

onmessage = ({ data: { id, picture } }) => {
  last = last.then(() => run(picture)).then(found => postMessage({ id, found }), error => report(error, id));
};

function report(error, id) {
  postMessage({ id, problem: error.message ?? `The model failed (${error}).` });
}

last = start().catch(error => report(error));

async function start() {
  const facts = await (await fetched("model.json")).json();
  const progress = new Map();
  const [model, wasm] = await Promise.all([MODEL, WASM].map(name => download(name, progress)));
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  Object.assign(ort.env.wasm, { numThreads: threads, wasmBinary: wasm });
  runtime = await load(ort, model, "wasm", `WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`}`);
  const pixels = await read(await (await fetched("sample.png")).blob());
  const off = difference(await infer(runtime, pixels), facts.sample), passed = off <= TOLERANCES[facts.precision];
  postMessage({ ready: { facts, difference: off, passed, runsOn: runtime.name } });
  if (passed) await keep(facts.digest, { [MODEL]: model, [WASM]: wasm }).catch(() => {});
  postMessage({ kept: true });
  if (await hasGpu()) tryGpu(model, pixels, facts).catch(error => console.info("WebGPU is not used:", error));
}

async function fetched(name) {
  const response = await fetch(name, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${name} could not be loaded (${response.status}).`);
  return response;
}

/** The bytes of a file. Reports the progress of all files, if the server tells their sizes. */
async function download(name, progress) {
  const response = await fetched(name), chunks = [];
  const compressed = response.headers.has("content-encoding");
  const total = compressed ? NaN : Number(response.headers.get("content-length") ?? NaN);
  let length = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    length += value.length;
    progress.set(name, { length, total });
    const sum = key => [...progress.values()].reduce((all, one) => all + one[key], 0);
    if (progress.size === 2 && sum("total")) postMessage({ loading: sum("length") / sum("total") });
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** Hand files that the page has loaded to the service worker of this version, so that it need not load them again. */
async function keep(version, files) {
  const folder = new URL("./", import.meta.url).href, cache = await caches.open(`${folder} ${version}`);
  for (const [name, bytes] of Object.entries(files)) {
    const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
    if (!(await cache.match(folder + name)))
      await cache.put(folder + name, new Response(bytes, { headers: { "content-type": type } }));
  }
}

async function load({ env, InferenceSession, Tensor }, model, provider, name) {
  env.logLevel = "error";
  env.wasm.wasmPaths = FOLDER;
  const session = await InferenceSession.create(model, { executionProviders: [provider], logSeverityLevel: 3 });
  return { session, Tensor, name };
}

/** { width, height, reduced, data } of a picture. `data` is (height, width, 3) bytes. */
async function read(picture) {
  const whole = picture instanceof Blob ? await decode(picture) : picture;
  const { width, height } = whole, bitmap = await reduce(whole);
  const pixels = { width: bitmap.width, height: bitmap.height, reduced: bitmap !== whole, data: rgbOf(bitmap) };
  bitmap.close();
  return { ...pixels, shown: [width, height] };
}

/** The outputs of the model, by name, as typed arrays. */
async function infer({ session, Tensor }, { width, height, data }) {
  const outputs = await session.run({ image: new Tensor("uint8", data, [height, width, 3]) });
  return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
}

async function run(picture) {
  const pixels = await read(picture), started = performance.now();
  let results;
  try {
    results = await infer(runtime, pixels);
  } catch (error) {
    throw new Error(`The model failed on a picture of ${pixels.shown.join(" × ")} pixels (${error.message ?? error}).`);
  }
  const milliseconds = performance.now() - started;
  return { results, width: pixels.width, height: pixels.height, shown: pixels.shown, reduced: pixels.reduced, milliseconds };
}

async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

/** Use WebGPU if it gives the same scores for the sample, and is faster. Pictures wait only while it is timed. */
async function tryGpu(model, pixels, { sample, precision }) {
  const gpu = await load(await import("./ort/ort.webgpu.min.mjs"), model, "webgpu", "WebGPU");
  const right = difference(await infer(gpu, pixels), sample) <= TOLERANCES[precision];  // the first run compiles shaders
  const compared = last.then(async () => {
    const limit = await milliseconds(runtime, pixels) / GAIN;
    const faster = right && (await milliseconds(gpu, pixels, limit)) < limit;
    const slower = faster ? runtime : gpu;
    if (faster) runtime = gpu;
    await slower.session.release();
    postMessage({ runsOn: runtime.name });
  });
  last = compared.catch(() => {});
  await compared;
}

/** The median of a few runs; Infinity if the first run takes much longer than `limit`. */
async function milliseconds(one, pixels, limit = Infinity) {
  const times = [];
  for (let round = 0; round < TIMED; round++) {
    const started = performance.now();
    await infer(one, pixels);
    times.push(performance.now() - started);
    if (times[0] > 4 * limit) return Infinity;
  }
  return times.sort((a, b) => a - b)[TIMED >> 1];
}
