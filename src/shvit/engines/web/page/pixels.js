/* From picture files to RGB bytes, as `shvit predict` reads them. */

/* Larger pictures are reduced to this many pixels first, to limit memory. */
const MOST_PIXELS = 2 ** 24;
/* Pixels are read in tiles, because browsers limit the size of a canvas. */
const TILE_WIDTH = 4096, TILE_PIXELS = 2 ** 20;

/** An upright bitmap with the colors of the file. Throws an Error with a message for the user. */
export async function decode(blob) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  try {
    return await createImageBitmap(blob, options);
  } catch {
    throw new Error(`${blob.name ?? "The file"} is not a picture that this browser can read.`);
  }
}

/** A bitmap of at most `MOST_PIXELS` pixels. The given bitmap is closed if it is larger. */
export async function reduce(bitmap) {
  const scale = Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height));
  if (scale >= 1) return bitmap;
  const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, Math.round(side * scale)));
  const reduced = await createImageBitmap(bitmap, {
    resizeWidth: width, resizeHeight: height, resizeQuality: "high",
    premultiplyAlpha: "none", colorSpaceConversion: "none",
  });
  bitmap.close();
  return reduced;
}

/** The bitmap on white, as (height, width, 3) bytes. */
export function rgbOf(bitmap) {
  const { width, height } = bitmap, pixels = new Uint8Array(3 * width * height);
  const columns = Math.min(width, TILE_WIDTH), rows = Math.min(height, Math.floor(TILE_PIXELS / columns));
  const context = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  for (let top = 0; top < height; top += rows)
    for (let left = 0; left < width; left += columns) {
      const w = Math.min(columns, width - left), h = Math.min(rows, height - top);
      context.fillRect(0, 0, w, h);
      context.drawImage(bitmap, left, top, w, h, 0, 0, w, h);
      const tile = context.getImageData(0, 0, w, h).data;
      for (let y = 0, from = 0; y < h; y++)
        for (let x = 0, to = 3 * ((top + y) * width + left); x < w; x++, from += 4) {
          pixels[to++] = tile[from];
          pixels[to++] = tile[from + 1];
          pixels[to++] = tile[from + 2];
        }
    }
  return pixels;
}
