// Labels images: node reader.mjs [MODEL [IMAGE ...]]
// Install: npm install onnxruntime-node sharp
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import ort from "onnxruntime-node";
import sharp from "sharp";

const [model = "best.onnx", ...images] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model);
// onnxruntime-node cannot read metadata. The report of the export has the same classes and sample.
const { classes, sample } = JSON.parse(readFileSync(`${model}.parity.json`));

function fail(message) {
  console.error(message);
  process.exit(1);
}

async function run(path) {
  const file = sharp(path, { ignoreIcc: true });
  const { depth } = await file.metadata().catch((error) => fail(`${path}: ${error.message}`));
  if (depth !== "uchar") fail(`${path}: save it with 8 bits per value`);
  const rgb = file.autoOrient().flatten({ background: "white" }).toColourspace("srgb").raw();
  const { data, info } = await rgb.toBuffer({ resolveWithObject: true });
  return session.run({ image: new ort.Tensor("uint8", data, [info.height, info.width, 3]) });
}

const known = await run(join(dirname(model), sample.image));
if (!sample.scores.every((score, i) => Math.abs(known.scores.data[sample.classes[i]] - score) <= 0.01))
  fail(`self-check failed: ${model} gives other scores for ${sample.image} than at its export`);
console.log("self-check passed");
for (const path of images) {
  const { scores: { data } } = await run(path);
  const best = data.indexOf(Math.max(...data));
  console.log(`${path}: ${classes[best]} ${data[best].toFixed(4)}`);
}
