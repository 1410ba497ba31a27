// The mel picture of a loop: the image, a cursor that moves with the sound, and a span that is chosen by dragging.

const COLORS = [[11, 10, 18], [50, 18, 90], [122, 33, 120], [204, 70, 94], [246, 140, 60], [252, 253, 191]];

/** Draw a gray PNG (base64), whose row 0 is the lowest band, in color with the lowest band at the bottom. */
export async function drawPng(canvas, base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.setTransform(1, 0, 0, -1, 0, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < image.data.length; i += 4) image.data.set(color(image.data[i] / 255), i);
  context.putImageData(image, 0, 0);
}

/** Draw the waveform of the first `seconds` of a sound. */
export function drawWave(canvas, buffer, seconds) {
  Object.assign(canvas, { width: 512, height: 256 });
  const context = canvas.getContext("2d");
  const samples = buffer.getChannelData(0).subarray(0, Math.round(seconds * buffer.sampleRate));
  const shown = seconds * buffer.sampleRate;
  context.fillStyle = "rgb(246 140 60)";
  for (let x = 0; x < canvas.width; x++) {
    const part = samples.subarray((x / canvas.width) * shown, ((x + 1) / canvas.width) * shown);
    const peak = part.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
    context.fillRect(x, 128 - 120 * peak, 1, Math.max(1, 240 * peak));
  }
}

function color(level) {
  const place = level * (COLORS.length - 1);
  const low = Math.min(Math.floor(place), COLORS.length - 2);
  return COLORS[low].map((value, i) => value + (COLORS[low + 1][i] - value) * (place - low));
}

/** The span of a picture that is chosen by dragging, or by the arrow keys, as [start, end] from 0 to 1. */
export class Span {
  #picture;
  #mark;
  #from;
  value = null;
  enabled = false;

  constructor(picture, mark, onChange) {
    this.#picture = picture;
    this.#mark = mark;
    picture.addEventListener("pointerdown", (event) => {
      if (!this.enabled) return;
      picture.setPointerCapture(event.pointerId);
      this.#from = this.#place(event);
    });
    picture.addEventListener("pointermove", (event) => {
      if (this.#from !== undefined) this.set([this.#from, this.#place(event)].sort((a, b) => a - b));
    });
    const end = () => {
      if (this.#from === undefined) return;
      this.#from = undefined;
      onChange(this.value);
    };
    picture.addEventListener("pointerup", end);
    picture.addEventListener("pointercancel", end);
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
      if (!this.enabled || !step) return;
      event.preventDefault();
      const [start, stop] = this.value ?? [0.25, 0.75];
      const moved = event.shiftKey ? [start, stop + step] : [start + step, stop + step];
      if (moved[0] >= 0 && moved[1] <= 1 && moved[1] - moved[0] >= 0.02) this.set(moved);
      onChange(this.value);
    });
  }

  set(value) {
    this.value = value && value[1] - value[0] >= 0.01 ? value : null;
    this.#mark.hidden = !this.value || !this.enabled;
    if (!this.value) return;
    this.#mark.style.left = `${this.value[0] * 100}%`;
    this.#mark.style.right = `${(1 - this.value[1]) * 100}%`;
  }

  enable(enabled) {
    this.enabled = enabled;
    this.#picture.classList.toggle("selecting", enabled);
    this.#picture.tabIndex = enabled ? 0 : -1;
    this.set(this.value);
  }

  #place(event) {
    const box = this.#picture.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }
}
