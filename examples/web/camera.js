/** The camera's picture, as long as it is watched. */

/** Enough for any network here, and little enough for a phone to prepare many a second. */
const WIDTH = 640;
const REASONS = {
  NotAllowedError: "The camera is not allowed to this page. Allow it in the browser's settings, or choose a file.",
  NotFoundError: "This device has no camera: choose a file.",
  NotReadableError: "Another program has the camera. Close it and try again, or choose a file.",
};

/**
 * Opens the camera, the one on the back where there are two.
 *
 * @param {function} ended Is called when the camera is taken away.
 * @returns {Promise<object>} `frame`, which gives the picture of this moment as ImageData, and `close`.
 * @throws {Error} If there is none, or none for this page; says what to do.
 */
export async function openCamera(ended) {
  if (!navigator.mediaDevices) {
    throw new Error("Browsers give the camera to pages from https:// or localhost only. Choose a file.");
  }
  const wanted = { video: { facingMode: "environment", width: { ideal: WIDTH } } };
  const stream = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
    throw new Error(REASONS[error.name] ?? `The camera cannot be opened: ${error.message}`);
  });
  const [track] = stream.getTracks();
  track.addEventListener("ended", ended);
  const video = document.createElement("video");
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  await video.play();

  function frame() {
    const { videoWidth: width, videoHeight: height } = video;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(video, 0, 0);
    return context.getImageData(0, 0, width, height);
  }

  return { frame, close: () => track.stop() };
}
