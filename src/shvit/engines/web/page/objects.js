/* Detected objects: which to show, and how to draw them over the picture. */

const MASK_SIDE = 28;
const SHADE = 0.45;  // opacity of a mask
const GOLDEN = 0.618034;  // step in hue from one class to the next, as a share of the color circle

/** The color of a class, the same in every picture. */
export const colorOf = index => `oklch(0.58 0.19 ${Math.round(360 * ((index * GOLDEN) % 1))})`;

/** The objects with at least this score, best first: { index, score, box, mask, maskBox }. */
export function objectsOf({ boxes, scores, classes, masks, mask_boxes: maskBoxes }, least) {
  const side = MASK_SIDE ** 2, found = [];
  for (let row = 0; row < scores.length; row++) {
    if (scores[row] < least) continue;
    const mask = masks && { mask: masks.subarray(side * row, side * (row + 1)), maskBox: boxAt(maskBoxes, row) };
    found.push({ index: Number(classes[row]), score: scores[row], box: boxAt(boxes, row), ...mask });
  }
  return found;
}

const boxAt = (boxes, row) => [...boxes.subarray(4 * row, 4 * row + 4)];

/** Draw objects over a picture of this size, which fills the canvas. `nameOf` gives the label of an object. */
export function drawObjects(canvas, objects, width, height, nameOf) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d"), scale = [canvas.width / width, canvas.height / height];
  const onCanvas = box => box.map((value, axis) => value * scale[axis % 2]);
  for (const { mask, maskBox, index } of objects.toReversed())
    if (mask) drawMask(context, mask, onCanvas(maskBox), colorOf(index));
  context.lineWidth = 2 * ratio;
  for (const { box, index } of objects.toReversed()) {
    const [left, top, right, bottom] = onCanvas(box);
    context.strokeStyle = colorOf(index);
    context.strokeRect(left, top, right - left, bottom - top);
  }
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const one of objects.toReversed()) drawLabel(context, nameOf(one), onCanvas(one.box), colorOf(one.index), ratio);
}

/** Fill the pixels whose probability, resized to the box, is above one half. */
function drawMask(context, mask, [left, top, right, bottom], color) {
  const small = new OffscreenCanvas(MASK_SIDE, MASK_SIDE), image = new ImageData(MASK_SIDE, MASK_SIDE);
  mask.forEach((probability, at) => { image.data[4 * at + 3] = 255 * probability; });
  small.getContext("2d").putImageData(image, 0, 0);
  const { width, height } = context.canvas;
  const [x, y] = [Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top))];
  const [w, h] = [Math.min(width, Math.ceil(right)) - x, Math.min(height, Math.ceil(bottom)) - y];
  if (w < 1 || h < 1) return;
  const shape = new OffscreenCanvas(w, h), drawn = shape.getContext("2d", { willReadFrequently: true });
  drawn.drawImage(small, left - x, top - y, right - left, bottom - top);
  const pixels = drawn.getImageData(0, 0, w, h);
  for (let at = 3; at < pixels.data.length; at += 4) pixels.data[at] = pixels.data[at] > 127 ? 255 : 0;
  drawn.putImageData(pixels, 0, 0);
  drawn.globalCompositeOperation = "source-in";
  drawn.fillStyle = color;
  drawn.fillRect(0, 0, w, h);
  context.globalAlpha = SHADE;
  context.drawImage(shape, x, y);
  context.globalAlpha = 1;
}

/** Write above the box or, where there is no room, inside it. */
function drawLabel(context, text, [left, top], color, ratio) {
  const room = 4 * ratio, width = context.measureText(text).width + 2 * room, height = 20 * ratio;
  const x = Math.max(0, Math.min(left - ratio, context.canvas.width - width));
  const y = top >= height ? top - height : Math.max(0, top);
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.fillStyle = "#fff";
  context.fillText(text, x + room, y + room);
}
