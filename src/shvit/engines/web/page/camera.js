/* The camera, as a stream of frames. */

const WINDOW = 2000;  // milliseconds over which frames are counted

/** Show the camera in this video element. Throws an Error with a message for the user. */
export async function startCamera(video) {
  if (!navigator.mediaDevices) throw new Error("The camera needs an https address, or localhost.");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch (error) {
    const reasons = { NotAllowedError: "permission was denied", NotFoundError: "no camera was found" };
    throw new Error(`The camera cannot be used: ${reasons[error.name] ?? "another program may be using it"}.`);
  }
  video.srcObject = stream;
  try {
    await video.play();
  } catch {
    // the page has stopped the camera in the meantime
  }
  return stream;
}

export function stopCamera(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Settles when the video has a new frame. */
export function nextFrame(video) {
  return new Promise(done =>
    video.requestVideoFrameCallback ? video.requestVideoFrameCallback(done) : requestAnimationFrame(done));
}

/** A function to call after each frame. It returns the frames per second. */
export function frameCounter() {
  const times = [];
  return () => {
    const now = performance.now();
    times.push(now);
    while (times[0] < now - WINDOW) times.shift();
    return times.length > 1 ? 1000 * (times.length - 1) / (now - times[0]) : null;
  };
}
