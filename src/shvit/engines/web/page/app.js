/* The page: pictures and camera frames in, results out. The model runs in worker.js. */

import { frameCounter, nextFrame, startCamera, stopCamera } from "./camera.js";
import { TOLERANCES } from "./check.js";
import { colorOf, drawObjects, objectsOf } from "./objects.js";

const BEST = 5;  // classes to show
const MOST_OBJECTS = 20;  // objects to list
const TASKS = { classify: "Image classification", detect: "Object detection", segment: "Instance segmentation" };

const at = id => document.getElementById(id);
const percent = score => `${(100 * score).toFixed(1)} %`;
const digits = new Intl.NumberFormat("en");

let facts;  // of the model
let shown;  // what the worker found in the picture on the screen
let camera;  // the stream of the camera while it is on
let latest = 0;  // the number of the newest picture; results of older ones are dropped
const waiting = new Map();  // requests to the worker, by number

const worker = new Worker("worker.js", { type: "module" });
worker.onmessage = ({ data }) => {
  if (data.loading !== undefined) at("loading").textContent = `Loading the model: ${Math.round(100 * data.loading)} %`;
  if (data.ready) ready(data.ready);
  if (data.kept) keep();
  if (data.runsOn) at("runs-on").textContent = data.runsOn;
  if (data.id === undefined && data.problem) stop(data.problem);
  const request = waiting.get(data.id);
  waiting.delete(data.id);
  if (request) data.found ? request.done(data.found) : request.failed(new Error(data.problem));
};
worker.onerror = event => stop(event.message || "The worker could not be started.");

/** What the model finds in a Blob or an ImageBitmap. */
function ask(picture) {
  return new Promise((done, failed) => {
    const id = ++latest;
    waiting.set(id, { done, failed });
    worker.postMessage({ id, picture }, picture instanceof ImageBitmap ? [picture] : []);
  });
}

/** The model cannot be used. */
function stop(reason) {
  at("loading").textContent = "The model could not be loaded.";
  at("problem").textContent = `The model could not be loaded: ${reason}`;
}

function ready({ facts: loaded, difference, passed, runsOn }) {
  facts = loaded;
  const { name } = facts.provenance.architecture, count = digits.format(facts.classes.length);
  const classes = facts.classes.length === 1 ? "1 class" : `${count} classes`;
  document.title = at("title").textContent = TASKS[facts.task];
  at("lead").textContent = `${name}, ${classes}, ${facts.precision}`;
  at("runs-on").textContent = runsOn;
  at("check").textContent = passed ? "passed" : `failed: scores differ by ${difference.toFixed(3)}`;
  at("check").className = passed ? "" : "wrong";
  at("check").dataset.difference = difference;
  if (!passed)
    at("mismatch").textContent = "Do not trust the results: in this browser, the scores for the sample picture differ "
      + `from the expected ones by ${difference.toFixed(3)}, more than the allowed ${TOLERANCES[facts.precision]}.`;
  at("classes-title").textContent = classes;
  at("classes").replaceChildren(...facts.classes.map(one => element("li", one)));
  for (const id of ["facts", "classes-row"]) at(id).hidden = false;
  at("least-row").hidden = facts.task === "classify";
  at("least").value = 100 * (facts.metrics.best_f1?.threshold ?? 0.3);
  at("least").oninput();
  for (const id of ["choose", "camera"]) at(id).disabled = false;
  document.body.dataset.ready = passed;
  fetch("sample.png").then(found => found.blob()).then(blob => latest || open(blob, "Sample picture", "The model is ready. Sample picture: "));
}

/** Show a picture and what the model finds in it. `before` is read out before the result. */
async function open(file, name, before = "") {
  endCamera();
  at("problem").textContent = "";
  at("figure").setAttribute("aria-busy", "true");
  const number = latest + 1;
  try {
    const [found, image] = await Promise.all([ask(file), imageOf(file, name)]);
    if (number !== latest) return;
    showImage(image);
    showResults(found);
    say(found, before);
  } catch (error) {
    if (number === latest) at("problem").textContent = error.message;
  } finally {
    if (number === latest) at("figure").removeAttribute("aria-busy");
  }
}

/** An image element for the picture, ready to be shown. */
async function imageOf(file, name) {
  const image = new Image();
  Object.assign(image, { id: "image", alt: name, src: URL.createObjectURL(file) });
  await image.decode().catch(() => {});
  return image;
}

function showImage(image) {
  URL.revokeObjectURL(at("image").src);
  at("image").replaceWith(image);
  at("caption").textContent = image.alt;
  display(image);
}

/** Show the image or the video, and hide the other. */
function display(which) {
  at("loading").hidden = true;
  at("figure").classList.remove("empty");
  for (const id of ["image", "video"]) at(id).hidden = at(id) !== which;
}

function showResults(found) {
  shown = found;
  const [width, height] = found.shown;
  const size = `${digits.format(width)} × ${digits.format(height)} pixels`;
  at("size").textContent = found.reduced ? `${size}, first reduced to ${found.width} × ${found.height}` : size;
  at("latency").textContent = `${found.milliseconds.toFixed(1)} ms`;
  at("latency").dataset.milliseconds = found.milliseconds;
  facts.task === "classify" ? showClasses(found.results.scores) : showObjects(found);
}

/** Indices of the classes with the highest scores. */
function best(scores) {
  return [...scores.keys()].sort((one, other) => scores[other] - scores[one]).slice(0, BEST);
}

/** Whether the highest score is below the threshold of the model, if it has one. */
const isUncertain = scores => scores[best(scores)[0]] < (facts.calibration?.threshold ?? 0);

function showClasses(scores) {
  at("none").hidden = !isUncertain(scores);
  at("none").textContent = `Uncertain: no score reaches ${percent(facts.calibration?.threshold ?? 0)}.`;
  list(best(scores).map(index => row(index, scores[index])));
}

function showObjects(found) {
  const objects = objectsOf(found.results, at("least").valueAsNumber / 100);
  const rest = objects.length - MOST_OBJECTS;
  at("none").hidden = objects.length > 0 && rest <= 0;
  at("none").textContent = objects.length ? `${digits.format(rest)} more objects are in the picture.` : "No objects found.";
  list(objects.slice(0, MOST_OBJECTS).map(one => row(one.index, one.score, one.box)));
  drawObjects(at("overlay"), objects, found.width, found.height, one => `${facts.classes[one.index]} ${percent(one.score)}`);
}

/** Reuse the rows on the screen, so that bars move instead of being drawn anew. */
function list(rows) {
  const there = [...at("results").children];
  rows.forEach((one, place) => {
    const old = there[place];
    if (!old) return at("results").append(one);
    if (old.isEqualNode(one)) return;
    old.style.cssText = one.style.cssText;
    Object.assign(old.dataset, one.dataset);
    old.replaceChildren(...one.childNodes);
  });
  there.slice(rows.length).forEach(one => one.remove());
}

function row(index, score, box) {
  const item = document.createElement("li");
  const bar = element("span", "", "bar");
  bar.ariaHidden = "true";
  item.append(element("bdi", facts.classes[index], "name"), " ", element("span", percent(score), "score"), bar);
  item.style.setProperty("--score", score);
  if (box) item.style.setProperty("--color", colorOf(index));
  Object.assign(item.dataset, { index, score: score.toFixed(6) }, box && { box: box.map(side => side.toFixed(1)) });
  return item;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Tell screen readers the result. */
function say({ results }, before) {
  const name = index => facts.classes[index];
  if (facts.task === "classify") {
    const [first] = best(results.scores), sure = isUncertain(results.scores) ? "Uncertain: " : "";
    at("spoken").textContent = `${before}${sure}${name(first)}, ${percent(results.scores[first])}`;
  } else {
    const objects = objectsOf(results, at("least").valueAsNumber / 100);
    const names = objects.slice(0, BEST).map(one => name(one.index)).join(", ");
    at("spoken").textContent = `${before}${objects.length} objects${names && `: ${names}`}`;
  }
}

async function toggleCamera() {
  if (camera) return endCamera();
  at("problem").textContent = "";
  at("camera").disabled = true;
  try {
    camera = await startCamera(at("video"));
  } catch (error) {
    at("problem").textContent = error.message;
    return;
  } finally {
    at("camera").disabled = false;
  }
  at("camera").textContent = "Stop the camera";
  at("rate-row").hidden = false;
  at("spoken").textContent = "The camera is on.";
  at("caption").textContent = "Camera";
  display(at("video"));
  follow(camera);
}

/** Run the model on frame after frame until the camera is stopped. */
async function follow(stream) {
  const video = at("video"), count = frameCounter();
  try {
    while (camera === stream) {
      await nextFrame(video);
      if (camera !== stream) return;
      const found = await ask(await createImageBitmap(video));
      if (camera !== stream) return;
      showResults(found);
      at("rate").textContent = count()?.toFixed(1) ?? "–";
    }
  } catch (error) {
    if (camera !== stream) return;
    endCamera();
    at("problem").textContent = error.message;
  }
}

/** Stop the camera, if it is on. The last frame stays on the screen. */
function endCamera() {
  if (!camera) return;
  const stream = camera;
  camera = undefined;
  at("video").pause();
  stopCamera(stream);
  at("camera").textContent = "Use the camera";
  at("rate-row").hidden = true;
  at("spoken").textContent = "The camera is off.";
}

/** Open the first of these files, if the model is loaded. */
function openFirst(files, otherwise) {
  if (!facts) return;
  if (files?.length) open(files[0], files[0].name);
  else at("problem").textContent = otherwise;
}

at("choose").onclick = () => at("file").click();
at("file").onchange = () => {
  if (at("file").files.length) openFirst(at("file").files);
  at("file").value = "";  // so that the same file can be chosen again
};
at("camera").onclick = toggleCamera;
at("least").oninput = () => {
  at("least-value").textContent = `${at("least").value} %`;
  if (shown) showResults(shown);
};
document.addEventListener("paste", event => openFirst(event.clipboardData.files, "The clipboard has no picture."));
document.addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", event => event.relatedTarget ?? document.body.classList.remove("dragging"));
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  openFirst(event.dataTransfer.files, "Drop a picture file.");
});
new ResizeObserver(() => shown && facts.task !== "classify" && showObjects(shown)).observe(at("overlay"));
at("loading").textContent = "Loading the model";

/** Keep the page for use without a network, and offer new versions of it. */
async function keep() {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return;
  let asked = false;
  const offer = waitingWorker => {
    at("update").hidden = false;
    at("load-update").onclick = () => {
      asked = true;
      waitingWorker.postMessage("activate");
    };
  };
  serviceWorker.addEventListener("controllerchange", () => asked && location.reload());
  try {
    const registration = await serviceWorker.register("sw.js", { updateViaCache: "none" });
    if (registration.waiting) offer(registration.waiting);
    registration.addEventListener("updatefound", () => {
      const next = registration.installing;
      next.addEventListener("statechange", () => next.state === "installed" && serviceWorker.controller && offer(next));
    });
  } catch (error) {
    console.info("The page will not work offline:", error.message);
  }
}
