// Picture files -> data URIs that the server takes.

export const MAX_PICTURES = 4; // of a message
// The server's: encoded bytes, side and pixels of one picture.
const MAX_BYTES = 8 << 20;
const MAX_SIDE = 8192;
const MAX_PIXELS = 16e6;
// A request holds 20 MiB, in which pictures are a third longer than their bytes.
const ALL_BYTES = 14 << 20;
const LEAST_BYTES = 256 << 10;
const TYPES = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);

/**
 * {name, url, note}: note says what was changed, or is null. used: bytes of the pictures already there.
 * Error when the browser sees no picture in the file.
 */
export async function readPicture(file, used) {
  const name = file.name || "picture";
  const room = Math.max(LEAST_BYTES, Math.min(MAX_BYTES, ALL_BYTES - used));
  const source = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = source;
    await image.decode().catch(() => {
      throw new Error(`${name}: this browser finds no picture in it`);
    });
    const width = image.naturalWidth || 512; // a drawing may have no size
    const height = image.naturalHeight || 512;
    const scale = Math.min(1, MAX_SIDE / Math.max(width, height), Math.sqrt(MAX_PIXELS / (width * height)));
    if (file.size <= room && scale === 1 && TYPES.has(file.type)) {
      return { name, url: await dataUri(file), note: null };
    }
    const smaller = await redraw(image, width, height, scale, room);
    const change = smaller.width < width ? `made smaller, ${width} × ${height} → ` : "sent as JPEG, ";
    const note = `${name}: ${change}${smaller.width} × ${smaller.height}, ${mebibytes(smaller.blob.size)}`;
    return { name, url: await dataUri(smaller.blob), note };
  } finally {
    URL.revokeObjectURL(source);
  }
}

/** As JPEG on white, smaller and smaller until it fits. */
async function redraw(image, fullWidth, fullHeight, scale, room) {
  for (;;) {
    const width = Math.max(1, Math.floor(fullWidth * scale));
    const height = Math.max(1, Math.floor(fullHeight * scale));
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, width, height);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    if (blob.size <= room) return { blob, width, height };
    scale *= 0.75;
  }
}

function dataUri(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

const mebibytes = (bytes) =>
  bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${(bytes / (1 << 20)).toFixed(1)} MiB`;
