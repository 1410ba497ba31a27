import { ApiError, events, key, models } from "./api.js";
import { drawPng, drawWave, Span } from "./picture.js";
import { Player } from "./player.js";
import { asCurl, asPython, bodyOf, fieldsOf, PATHS, SOURCES } from "./request.js";
import { Takes } from "./takes.js";

const $ = (id) => document.getElementById(id);
const form = $("controls");
const player = new Player();
const sounds = [null, null];
let running = null;
let described = [];
let ofSource = null; // the take whose picture stands for the source of a regeneration

const kind = () => form.elements.kind.value;
const inputs = Object.fromEntries(["model", "seed", "steps", "bars", "bpm", "seamless", "strength", "position", "prompt"].map((name) => [name, $(name)]));
const span = new Span($("picture"), $("span"), () => showFacts());
const takes = new Takes($("takes").querySelector("ol"), $("take"), { chosen, used });

function say(message, isWrong = false) {
  $("message").textContent = message;
  $("status").classList.toggle("wrong", isWrong);
}

function report(error) {
  if (error.name === "AbortError") return say("Stopped.");
  if (error instanceof ApiError && error.status === 401) return askForKey(key.get() ? "The key was refused." : "");
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say((error instanceof ApiError ? error.message : "The server cannot be reached.") + later, true);
}

function askForKey(message) {
  $("key-message").textContent = message;
  $("key").value = "";
  $("key-dialog").showModal();
}

async function loadModels() {
  try {
    described = await models();
  } catch (error) {
    return report(error);
  }
  inputs.model.replaceChildren(...described.map((model) => new Option(model.name ?? model.id, model.name ?? model.id)));
  say("");
  adapt();
}

/** Show the controls that the kind of request and the model have. */
function adapt() {
  const model = described.find((one) => (one.name ?? one.id) === inputs.model.value) ?? {};
  $("sources").hidden = SOURCES[kind()] === 0;
  form.querySelector("[data-place='1']").hidden = SOURCES[kind()] < 2;
  $("strength-row").hidden = kind() !== "vary";
  $("position-row").hidden = kind() !== "interpolate";
  $("seamless-row").hidden = kind() === "vary" || kind() === "inpaint";
  $("prompt-row").hidden = !model.text;
  inputs.bars.disabled = kind() !== "generate";
  inputs.bpm.disabled = inputs.bars.disabled || !inputs.bars.value;
  $("source-hint").textContent = {
    vary: "The model makes another sound of this one.",
    inpaint: "Drag over the picture, or use the arrow keys on it, to choose what is made anew.",
    interpolate: "The model makes a sound between the two.",
    generate: "",
  }[kind()];
  span.enable(kind() === "inpaint");
}

function setSound(place, sound) {
  sounds[place] = sound;
  const drop = form.querySelector(`[data-place='${place}']`);
  drop.classList.toggle("full", Boolean(sound));
  drop.querySelector(".name").textContent = sound ? sound.name : "Drop a sound, or press to choose a file";
}

async function useFile(place, file) {
  setSound(place, { name: file.name, blob: file });
  ofSource = null;
  try {
    const buffer = await player.decode(await file.arrayBuffer());
    if (kind() === "inpaint") {
      drawWave($("mel"), buffer, modelSeconds());
      $("empty").hidden = true;
    }
  } catch {
    say("This browser cannot show the file. The server may still decode it.");
  }
}

function used(take) {
  if (SOURCES[kind()] === 0) form.elements.kind.value = "vary";
  adapt();
  const place = SOURCES[kind()] === 2 && sounds[0] ? 1 : 0;
  setSound(place, { name: take.name, blob: take.blob });
  ofSource = take;
  takes.choose(take);
}

function currentRequest() {
  const needed = SOURCES[kind()];
  const chosen = sounds.slice(0, needed);
  if (chosen.some((sound) => !sound)) throw new Error(needed === 2 ? "Choose two sounds first." : "Choose a sound first.");
  let seconds = null;
  if (kind() === "inpaint") {
    const length = takes.current && ofSource === takes.current ? takes.current.buffer.duration : modelSeconds();
    if (!span.value) throw new Error("Drag over the picture to choose what is made anew.");
    seconds = span.value.map((place) => Math.round(place * length * 1000) / 1000);
  }
  return { fields: fieldsOf(inputs, kind(), seconds), sounds: chosen };
}

const modelSeconds = () => described.find((one) => (one.name ?? one.id) === inputs.model.value)?.duration_s ?? 1;

async function make() {
  if (running) return;
  if (inputs.seed.value === "" || ($("roll").checked && takes.all.length)) roll();
  let request;
  try {
    request = currentRequest();
  } catch (error) {
    return say(error.message, true);
  }
  const made = kind();
  running = new AbortController();
  setRunning(true);
  say("Waiting...");
  try {
    let last = null;
    for await (const [name, data] of events(PATHS[made], bodyOf(request.fields, request.sounds), running.signal)) {
      if (name === "progress") showProgress(data);
      else if (name === "preview") await drawPng($("mel"), (last = data.png));
      else if (name === "audio") await addTake(made, request, data, last);
      else if (name === "error") throw new ApiError(data.error?.status ?? 500, data.error?.message ?? "The request failed.");
    }
  } catch (error) {
    report(error);
  } finally {
    running = null;
    setRunning(false);
  }
}

function setRunning(is) {
  $("make").disabled = is;
  $("stop").disabled = !is;
  $("progress").hidden = !is;
  $("progress").value = 0;
  if (is) $("empty").hidden = true;
}

function showProgress({ step, steps }) {
  $("progress").max = steps;
  $("progress").value = step;
  say(`Step ${step} of ${steps}`);
}

async function addTake(made, request, data, preview) {
  const bytes = Uint8Array.from(atob(data.audio), (c) => c.charCodeAt(0));
  const blob = new Blob([bytes], { type: "audio/wav" });
  const buffer = await player.decode(bytes.buffer.slice(0));
  const { seed = request.fields.seed, tempo_bpm: tempo, key: tonality } = data;
  const bpm = request.fields.bpm ?? tempo;
  const facts = [bpm ? `${Math.round(bpm * 10) / 10} bpm` : null, tonality].filter(Boolean);
  const safe = [`${made}-${seed}`, ...facts].join(" ").replaceAll("#", "s").replaceAll(/[^\w.-]+/g, "_");
  takes.add({ name: `${safe}.wav`, label: [`${seed}`, ...facts].join(" · "), blob, buffer, picture: data.png ?? preview, facts, kind: made, seed });
  say("");
}

async function chosen(take) {
  $("play").disabled = $("compare").disabled = !take;
  if (!take) {
    player.stop();
    return tell();
  }
  if (take.picture) await drawPng($("mel"), take.picture);
  $("empty").hidden = true;
  showFacts();
  await player.play(take.buffer, player.position);
  tell();
}

function showFacts() {
  const take = takes.current;
  const part = span.enabled && span.value ? `span ${span.value.map((place) => (place * (take?.buffer.duration ?? modelSeconds())).toFixed(2)).join(" to ")} s` : null;
  $("facts").textContent = [take && `seed ${take.seed}`, take && `${take.buffer.duration.toFixed(2)} s`, ...(take?.facts ?? []), part].filter(Boolean).join(" · ");
}

function tell() {
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
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not allow copying on this page.", true);
  }
}

function copyAs(write) {
  try {
    const request = currentRequest();
    copy(write(kind(), request.fields, request.sounds, Boolean(key.get())));
  } catch (error) {
    say(error.message, true);
  }
}

function moveCursor() {
  $("cursor").hidden = !player.isPlaying;
  $("cursor").style.left = `${player.position * 100}%`;
  requestAnimationFrame(moveCursor);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  make();
});
form.addEventListener("change", adapt);
for (const name of ["strength", "position"]) $(name).addEventListener("input", () => ($(`${name}-value`).textContent = $(name).value));
inputs.model.addEventListener("change", adapt);
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
  drop.addEventListener("click", (event) => event.target !== file && file.click());
  drop.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    file.click();
  });
  file.addEventListener("change", () => file.files[0] && useFile(place, file.files[0]));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) useFile(place, event.dataTransfer.files[0]);
  });
}
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select, dialog *");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const isButton = event.target.matches("button, a");
  if (event.key === " " && !isButton) togglePlay();
  else if (event.key === "Enter" && !isButton && !event.target.closest("li")) make();
  else if (event.key === "Escape") running?.abort();
  else if (event.key.toLowerCase() === "x") takes.swap();
  else if (event.key.toLowerCase() === "r") roll();
  else return;
  event.preventDefault();
});

adapt();
moveCursor();
loadModels();
