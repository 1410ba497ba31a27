import { ApiError, events, key, models } from "./api.js";
import { drawPng, drawWave, Span } from "./picture.js";
import { Player } from "./player.js";
import { asCurl, asPython, bodyOf, fieldsOf, PATHS, SOURCES } from "./request.js";
import { Takes } from "./takes.js";

const PREVIEWS = 12; // in a request whose number of steps is stated
const PREVIEW_EVERY = 4;
const BPM_OF_BARS = "120";
const BPM_RANGE = [20, 400]; // of bars, by models that are not conditioned on tempo
const EMPTY = "Drop a sound, or press to choose a file";
const HINTS = {
  generate: "",
  vary: "Makes another sound of this one.",
  inpaint: "Drag over the picture, or press the arrow keys on it, to choose what is made again.",
  interpolate: "Makes a sound between the two.",
};

const $ = (id) => document.getElementById(id);
const form = $("controls");
const player = new Player();
const sounds = [null, null]; // {name, blob, take} or null
const inputs = Object.fromEntries(["model", "seed", "steps", "bars", "bpm", "seamless", "strength", "position", "prompt", "tonality"].map((name) => [name, $(name)]));
const span = new Span($("picture"), $("span"), showFacts);
const takes = new Takes($("takes").querySelector("ol"), $("take"), { chosen, used, compared });
let running = null; // AbortController of the request in progress
let isPreviewShown = false;
let described = [];
let isSeedNew = true; // no take was made of the seed yet
let isTempoSuggested = false; // nobody has typed the tempo that is shown

const kind = () => form.elements.kind.value;
const model = () => described.find((one) => one.name === inputs.model.value) ?? { duration_s: 1, sample_rate: 44100 };
const isConditionedOn = (feature) => (model().conditions ?? []).includes(feature);
const sourceSeconds = () => sounds[0]?.take?.buffer.duration ?? model().duration_s;

function say(message, isWrong = false) {
  $("message").textContent = message;
  $("message").classList.toggle("wrong", isWrong);
}

function report(error) {
  if (error.name === "AbortError") return say("Stopped.");
  if (error instanceof ApiError && error.status === 401) return askForKey(key.get() ? "The server refused the key." : "");
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say((error instanceof TypeError ? "The server cannot be reached." : error.message) + later, true);
}

function askForKey(message) {
  say("");
  $("key-message").textContent = message;
  $("key").value = "";
  $("key-dialog").showModal();
}

async function loadModels() {
  $("docs").hidden = Boolean(key.get()); // a link sends no key
  try {
    described = await models();
  } catch (error) {
    return report(error);
  }
  inputs.model.replaceChildren(...described.map(({ name }) => new Option(name, name)));
  say("");
  adapt();
}

/** Show the controls that the kind of request and the model have. */
function adapt() {
  const needed = SOURCES[kind()];
  $("sources").hidden = needed === 0;
  form.querySelector("[data-place='1']").hidden = needed < 2;
  $("strength-row").hidden = kind() !== "vary";
  $("position-row").hidden = kind() !== "interpolate";
  $("seamless-row").hidden = needed === 1;
  $("prompt-row").hidden = !model().text;
  $("tonality-row").hidden = !isConditionedOn("key");
  inputs.bars.disabled = kind() !== "generate";
  adaptTempo();
  $("source-hint").textContent = HINTS[kind()];
  span.enable(kind() === "inpaint");
  showFacts();
}

/** Bars need a tempo. Without bars, only a model that is conditioned on tempo takes one, and none stands for any. */
function adaptTempo() {
  const { bars, bpm } = inputs;
  bpm.disabled = bars.disabled || !(bars.value || isConditionedOn("tempo"));
  bpm.required = Boolean(bars.value);
  [bpm.min, bpm.max] = model().ranges?.tempo ?? BPM_RANGE;
  if (bars.value && !bpm.value) [bpm.value, isTempoSuggested] = [BPM_OF_BARS, true];
  if (!bars.value && isTempoSuggested) [bpm.value, isTempoSuggested] = ["", false];
}

function changeKind() {
  const suggested = kind() === "interpolate" ? [takes.a, takes.b] : [takes.current];
  for (let place = 0; place < SOURCES[kind()]; place++) if (!sounds[place] && suggested[place]) setSound(place, soundOf(suggested[place]));
  adapt();
}

const soundOf = (take) => ({ name: take.name, blob: take.blob, take });

function setSound(place, sound) {
  sounds[place] = sound;
  const drop = form.querySelector(`[data-place='${place}']`);
  drop.classList.toggle("full", Boolean(sound));
  drop.querySelector(".name").textContent = sound?.name ?? EMPTY;
}

async function useFile(place, file) {
  setSound(place, { name: file.name, blob: file });
  say("");
  if (kind() !== "inpaint") return;
  try {
    drawWave($("mel"), await player.decode(await file.arrayBuffer(), model().sample_rate), model().duration_s);
    $("empty").hidden = true;
  } catch {
    say("This browser cannot show the file. The server may still read it.");
  }
}

function used(take) {
  if (SOURCES[kind()] === 0) form.elements.kind.value = "vary";
  setSound(SOURCES[kind()] === 2 && sounds[0] ? 1 : 0, soundOf(take));
  adapt();
  if (take !== takes.current) takes.choose(take);
}

function currentRequest() {
  const chosen = sounds.slice(0, SOURCES[kind()]);
  if (chosen.includes(null)) throw new Error(chosen.length === 2 ? "Choose two sounds first." : "Choose a sound first.");
  if (kind() === "inpaint" && !span.value) throw new Error("Drag over the picture to choose what is made again.");
  const seconds = kind() === "inpaint" ? span.value.map((place) => Math.round(place * sourceSeconds() * 1000) / 1000) : null;
  return { fields: { ...fieldsOf(inputs, kind(), seconds), ...lengthOf(chosen) }, sounds: chosen };
}

/** The length of a request for a sound like a take, or for another part of the take. */
function lengthOf([sound]) {
  if (!sound?.take || kind() === "interpolate") return {};
  if (kind() === "inpaint") return { duration_s: sound.take.buffer.duration };
  const { bars, bpm } = sound.take.request;
  return bars ? { bars, bpm } : {};
}

async function make() {
  if (running || !form.reportValidity()) return;
  if ($("roll").checked && !isSeedNew) roll();
  const made = kind();
  let request;
  try {
    request = currentRequest();
  } catch (error) {
    return say(error.message, true);
  }
  const { steps } = request.fields;
  const fields = { ...request.fields, preview_every: steps ? Math.ceil(steps / PREVIEWS) : PREVIEW_EVERY };
  running = new AbortController();
  setRunning(true);
  say("Waiting for the server");
  try {
    for await (const [name, data] of events(PATHS[made], bodyOf(fields, request.sounds), running.signal)) {
      if (name === "accepted" && data.position) say(`Waiting: ${data.position} before this one`);
      else if (name === "progress") showProgress(data);
      else if (name === "preview") await showPreview(data.png);
      else if (name === "audio") await addTake(made, data);
      else if (name === "error") throw new Error(data.error.message);
    }
  } catch (error) {
    report(error);
  } finally {
    running = null;
    setRunning(false);
    if (isPreviewShown) await showPicture(takes.current);
  }
}

function setRunning(is) {
  $("make").disabled = is;
  $("stop").disabled = !is;
  $("progress").classList.toggle("on", is);
  $("progress").value = 0;
}

function showProgress({ step, steps }) {
  $("progress").max = steps;
  $("progress").value = step;
  say(step < steps ? `Step ${step} of ${steps}` : "Rendering the sound");
}

async function showPreview(png) {
  isPreviewShown = $("empty").hidden = true;
  await drawPng($("mel"), png);
}

async function showPicture(take) {
  isPreviewShown = false;
  if (take) await drawPng($("mel"), take.picture);
  else $("mel").getContext("2d").clearRect(0, 0, $("mel").width, $("mel").height);
  $("empty").hidden = Boolean(take);
}

async function addTake(made, { audio, request, sample_rate: rate, tempo_bpm: measured, key: tonality, png }) {
  const bytes = Uint8Array.from(atob(audio), (c) => c.charCodeAt(0));
  const buffer = await player.decode(bytes.buffer.slice(0), rate);
  const bpm = request.bars ? request.bpm : measured;
  const facts = [bpm ? `${Math.round(bpm * 10) / 10} bpm` : null, tonality].filter(Boolean);
  const name = [`${made}-${request.seed}`, ...facts].join(" ").replaceAll("#", "s").replaceAll(/[^\w.-]+/g, "_");
  const blob = new Blob([bytes], { type: "audio/wav" });
  say("");
  if (inputs.seed.value === String(request.seed)) isSeedNew = false;
  takes.add({ name: `${name}.wav`, label: [request.seed, ...facts].join(" · "), blob, buffer, picture: png, facts, kind: made, request });
}

async function chosen(take) {
  $("takes").hidden = !takes.all.length;
  $("play").disabled = !take;
  compared();
  showFacts();
  if (take) await player.play(take.buffer, player.position);
  else player.stop();
  tell();
  await showPicture(take);
}

function compared() {
  $("compare").disabled = !(takes.a && takes.b);
}

function showFacts() {
  const take = takes.current;
  const part = span.enabled && span.value?.map((place) => (place * sourceSeconds()).toFixed(2)).join(" to ");
  const facts = { Seed: take?.request.seed, Length: take && `${take.buffer.duration.toFixed(2)} s`, Sound: take?.facts.join(", "), Part: part && `${part} s` };
  $("facts").replaceChildren(
    ...Object.entries(facts).filter(([, value]) => value || value === 0).map(([name, value]) => {
      const fact = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", value]]) fact.appendChild(document.createElement(tag)).textContent = text;
      return fact;
    }),
  );
}

function tell() {
  $("play").setAttribute("aria-pressed", String(player.isPlaying));
  $("play").querySelector("span").textContent = player.isPlaying ? "Pause" : "Play";
}

async function togglePlay() {
  if (!takes.current) return;
  if (player.isPlaying) player.stop();
  else await player.play(takes.current.buffer);
  tell();
}

function roll() {
  inputs.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  isSeedNew = true;
}

async function copyAs(write) {
  try {
    const request = currentRequest();
    await navigator.clipboard.writeText(write(kind(), request.fields, request.sounds, Boolean(key.get())));
    say("Copied.");
  } catch (error) {
    say(error instanceof DOMException || error instanceof TypeError ? "This browser does not allow copying here." : error.message, true);
  }
}

function moveCursor() {
  $("cursor").hidden = !player.isPlaying || isPreviewShown;
  $("cursor").style.left = `${player.position * 100}%`;
  requestAnimationFrame(moveCursor);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  make();
});
form.addEventListener("change", (event) => (event.target.name === "kind" ? changeKind() : adapt()));
for (const name of ["strength", "position"]) $(name).addEventListener("input", () => ($(`${name}-value`).textContent = $(name).value));
inputs.model.addEventListener("change", adapt);
inputs.bpm.addEventListener("input", () => (isTempoSuggested = false));
inputs.seed.addEventListener("input", () => (isSeedNew = true));
$("dice").addEventListener("click", roll);
$("stop").addEventListener("click", () => running?.abort());
$("play").addEventListener("click", togglePlay);
$("compare").addEventListener("click", () => takes.swap());
$("volume").addEventListener("input", () => (player.volume = Number($("volume").value)));
$("copy-curl").addEventListener("click", () => copyAs(asCurl));
$("copy-python").addEventListener("click", () => copyAs(asPython));
$("change-key").addEventListener("click", () => askForKey(""));
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "ok") return;
  key.set($("key").value.trim());
  loadModels();
});
for (const drop of document.querySelectorAll(".drop")) {
  const place = Number(drop.dataset.place);
  const file = drop.querySelector("input");
  const over = (is) => (event) => {
    event.preventDefault();
    drop.classList.toggle("over", is);
  };
  drop.addEventListener("click", (event) => event.target !== file && file.click());
  file.addEventListener("change", () => file.files[0] && useFile(place, file.files[0]));
  drop.addEventListener("dragover", over(true));
  drop.addEventListener("dragleave", over(false));
  drop.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files[0]) useFile(place, event.dataTransfer.files[0]);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("key-dialog").open) return;
  const at = (selector) => event.target.matches(selector);
  if (event.key === "Escape") return running?.abort();
  if (at(".drop") && (event.key === "Enter" || event.key === " ")) event.target.click();
  else if (at("input[type=text], input[type=number], select")) return;
  else if (event.key === " " && !at("button, a, input[type=checkbox], input[type=radio]")) togglePlay();
  else if (event.key === "Enter" && !at("button, a, li")) make();
  else if (event.key.toLowerCase() === "x") takes.swap();
  else if (event.key.toLowerCase() === "r") roll();
  else return;
  event.preventDefault();
});

roll();
adapt();
moveCursor();
loadModels();
