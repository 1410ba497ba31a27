
"use strict";
// Web Audio repeats decoded samples without the short pause of a player at the end of a file. The player of the page
// stays in use for its controls; its own sound is turned off while the decoded samples are heard.
const WRAP_S = 0.1; // a jump to the first tenth of a second is the wrap of the player, not a wish of the listener
const tools = document.querySelector("form.tools");
const gapless = tools && tools.elements.gapless;
const output = tools && tools.querySelector("output");
const cards = [...document.querySelectorAll("article.loop")];
const graphs = new WeakMap();
let context = null;
let current = null;
let playing = null;
let notice = "";

function sampleRate(bytes) {
  const view = new DataView(bytes);
  const isWav = bytes.byteLength > 28 && view.getUint32(0) === 0x52494646 && view.getUint32(12) === 0x666d7420;
  return isWav ? view.getUint32(24, true) : undefined;
}

function contextFor(bytes) {
  try {
    return new AudioContext({ sampleRate: sampleRate(bytes) });
  } catch {
    return new AudioContext();
  }
}

function graphOf(audio) {
  if (!graphs.has(audio)) {
    const own = context.createGain();
    const decoded = context.createGain();
    context.createMediaElementSource(audio).connect(own).connect(context.destination);
    decoded.connect(context.destination);
    graphs.set(audio, { own, decoded });
  }
  return graphs.get(audio);
}

async function startGapless(audio) {
  try {
    if (location.protocol === "file:" && !audio.src.startsWith("data:")) {
      throw new Error("this page was opened as a file, and its audio lies in other files");
    }
    const bytes = await (await fetch(audio.src)).arrayBuffer();
    context ??= contextFor(bytes);
    await context.resume();
    const buffer = await context.decodeAudioData(bytes);
    if (gapless.checked && current === audio && !audio.paused) play(audio, buffer);
  } catch (error) {
    gapless.checked = false;
    tell(`Gapless is not possible: ${error.message}. The players repeat by themselves.`);
  }
}

function play(audio, buffer) {
  stopGapless();
  const { own, decoded } = graphOf(audio);
  const node = context.createBufferSource();
  node.buffer = buffer;
  node.loop = true;
  node.playbackRate.value = audio.playbackRate;
  node.connect(decoded);
  decoded.gain.value = audio.muted ? 0 : audio.volume;
  own.gain.value = 0;
  const offset = audio.currentTime % buffer.duration;
  node.start(0, offset);
  playing = { audio, buffer, node, own, decoded, offset, started: context.currentTime };
}

function stopGapless() {
  if (!playing) return;
  playing.node.stop();
  playing.node.disconnect();
  playing.own.gain.value = 1;
  playing = null;
}

function position(audio) {
  if (playing && playing.audio === audio) {
    const passed = (context.currentTime - playing.started) * playing.node.playbackRate.value;
    return ((playing.offset + passed) % playing.buffer.duration) / playing.buffer.duration;
  }
  return audio.duration ? audio.currentTime / audio.duration : 0;
}

function drawPosition() {
  if (!current || current.paused) return;
  const picture = current.closest("article").querySelector(".picture");
  picture.querySelector("i").style.transform = `translateX(${position(current) * picture.clientWidth}px)`;
  requestAnimationFrame(drawPosition);
}

for (const card of cards) {
  const audio = card.querySelector("audio");
  const picture = card.querySelector(".picture");
  picture.append(document.createElement("i"));
  picture.addEventListener("click", (event) => {
    if (!audio.paused) return audio.pause();
    if (audio.duration) audio.currentTime = (event.offsetX / picture.clientWidth) * audio.duration;
    audio.play();
  });
  audio.addEventListener("play", () => {
    if (current && current !== audio) current.pause();
    current = audio;
    card.classList.add("playing");
    requestAnimationFrame(drawPosition);
    if (gapless && gapless.checked) startGapless(audio);
  });
  audio.addEventListener("pause", () => {
    card.classList.remove("playing");
    if (playing && playing.audio === audio) stopGapless();
  });
  audio.addEventListener("seeked", () => {
    if (playing && playing.audio === audio && audio.currentTime > WRAP_S) play(audio, playing.buffer);
  });
  audio.addEventListener("volumechange", () => {
    if (playing && playing.audio === audio) playing.decoded.gain.value = audio.muted ? 0 : audio.volume;
  });
  audio.addEventListener("ratechange", () => {
    if (playing && playing.audio === audio) play(audio, playing.buffer);
  });
}

function tell(message = notice) {
  notice = message;
  const shown = cards.filter((card) => !card.hidden).length;
  const loops = cards.length === 1 ? "loop" : "loops";
  const count = shown === cards.length ? `${shown} ${loops}` : `${shown} of ${cards.length} ${loops}`;
  output.value = notice ? `${notice} ${count}` : count;
}

function isNumber(name) {
  return name !== "id" && name !== "key";
}

function compare(one, other, name) {
  const [a, b] = [one.dataset[name], other.dataset[name]];
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // without a value: last
  const order = isNumber(name) ? a - b : a.localeCompare(b, "en", { numeric: true });
  return tools.elements.direction.getAttribute("aria-pressed") === "true" ? -order : order;
}

function sort() {
  const name = tools.elements.sort.value;
  const wasPlaying = current && !current.paused;
  const sorted = [...cards].sort((one, other) => compare(one, other, name) || one.dataset.number - other.dataset.number);
  document.querySelector(".loops").append(...sorted);
  if (wasPlaying) current.play(); // a player that is moved stops
}

function isWithin(card, name) {
  const [from, to] = ["from", "to"].map((end) => tools.elements[`${name}-${end}`].value);
  if (from === "" && to === "") return true;
  const value = card.dataset[name];
  return value !== undefined && (from === "" || +value >= +from) && (to === "" || +value <= +to);
}

function filter() {
  const words = tools.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const key = tools.elements.key ? tools.elements.key.value : "";
  for (const card of cards) {
    const text = words.length ? card.textContent.toLowerCase() : "";
    card.hidden = !(
      words.every((word) => text.includes(word)) &&
      (key === "" || (card.dataset.key ?? "-") === key) &&
      ["tempo", "seam", "level"].every((name) => isWithin(card, name))
    );
    if (card.hidden) card.querySelector("audio").pause();
  }
  const filters = tools.querySelector(".filters");
  const values = [...filters.querySelectorAll("input, select")].map((field) => field.value);
  filters.classList.toggle("active", values.some(Boolean));
  document.querySelector(".none").hidden = cards.some((card) => !card.hidden);
  tell("");
}

if (tools) {
  tools.hidden = false;
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    if (event.target === gapless) return;
    if (event.target === tools.elements.sort) sort();
    else filter();
  });
  tools.addEventListener("reset", () => {
    const [order, on] = [tools.elements.sort.value, gapless.checked];
    setTimeout(() => {
      tools.elements.sort.value = order;
      gapless.checked = on;
      filter();
    });
  });
  tools.elements.direction?.addEventListener("click", ({ currentTarget: button }) => {
    const descending = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(descending));
    button.textContent = descending ? "↓" : "↑";
    sort();
  });
  gapless.addEventListener("change", () => {
    tell("");
    if (!gapless.checked) stopGapless();
    else if (current && !current.paused) startGapless(current);
  });
  tell("");
}
