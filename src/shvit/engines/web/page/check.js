/* The sample check: whether the model gives the expected scores for its sample picture in this browser. */

/* The largest difference of a score that rounding explains, by precision. */
export const TOLERANCES = { fp32: 0.01, int8: 0.03 };
/* Boxes whose intersection over union is smaller belong to different objects. */
const OVERLAP = 0.5;

/** The largest difference between the scores of the results and those of the sample. */
export function difference(results, sample) {
  const found = sample.classes.map((index, row) =>
    sample.boxes ? scoreOf(results, index, sample.boxes[row]) : results.scores[index]);
  return found.reduce((most, score, row) => {
    const one = Math.abs(score - sample.scores[row]);
    return one <= most ? most : one;  // keeps NaN
  }, 0);
}

/** The score of the object of this class that overlaps the box most; 0 if there is none. */
function scoreOf({ boxes, scores, classes }, index, box) {
  let best = OVERLAP, score = 0;
  for (let row = 0; row < scores.length; row++) {
    if (Number(classes[row]) !== index) continue;
    const overlap = iou(boxes.subarray(4 * row, 4 * row + 4), box);
    if (overlap >= best) [best, score] = [overlap, scores[row]];
  }
  return score;
}

function iou(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  const both = Math.max(0, width) * Math.max(0, height);
  return both / (area(one) + area(other) - both);
}

const area = box => (box[2] - box[0]) * (box[3] - box[1]);
