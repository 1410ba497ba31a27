// From the form to a request, and to the same request as curl and Python.

export const PATHS = { generate: "v1/generate", vary: "v1/variations", inpaint: "v1/inpaint", interpolate: "v1/interpolate" };
export const SOURCES = { generate: 0, vary: 1, inpaint: 1, interpolate: 2 };

const number = (input) => (input.value === "" ? undefined : Number(input.value));

/** Return the fields of the request that the form states. `span` is in seconds, or null. */
export function fieldsOf(form, kind, span) {
  const { model, seed, steps, bars, bpm, seamless, strength, position, prompt, tonality } = form;
  const fields = { model: model.value, seed: number(seed), steps: number(steps) };
  if (kind === "generate" && bars.value) fields.bars = Number(bars.value);
  if (!bpm.disabled) fields.bpm = number(bpm);
  if (tonality.value && !tonality.closest("[hidden]")) fields.key = tonality.value;
  if (kind === "generate" || kind === "interpolate") fields.seamless = seamless.checked;
  if (kind === "vary") fields.strength = Number(strength.value);
  if (kind === "interpolate") fields.position = Number(position.value);
  if (kind === "inpaint" && span) fields.regenerate = [span];
  if (prompt.value && !prompt.closest("[hidden]")) fields.prompt = prompt.value;
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

/** Return the body of a request: JSON, or a form with the sounds. */
export function bodyOf(fields, sounds) {
  if (!sounds.length) return fields;
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  for (const sound of sounds) body.append("audio", sound.blob, sound.name);
  return body;
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** Return a request as a curl command. */
export function asCurl(kind, fields, sounds, hasKey) {
  const lines = [`curl ${new URL(PATHS[kind], document.baseURI)} -o loop.wav`];
  if (hasKey) lines.push('-H "Authorization: Bearer $AUDIODIFF_API_KEY"');
  if (sounds.length) {
    for (const sound of sounds) lines.push(`-F ${quoted(`audio=@"${sound.name.replaceAll(/[\\"]/g, "\\$&")}"`)}`);
    for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(fields))}`);
  }
  return lines.join(" \\\n  ");
}

/** Return a request as a Python program that uses httpx. */
export function asPython(kind, fields, sounds, hasKey) {
  const python = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));
  const url = python(String(new URL(PATHS[kind], document.baseURI)));
  const lines = ["import os", "from pathlib import Path", "", "import httpx", ""].filter((line) => hasKey || line !== "import os");
  const values = Object.entries(fields).map(([name, value]) => `    ${python(name)}: ${sounds.length && typeof value === "object" ? python(JSON.stringify(value)) : python(value)},`);
  lines.push("fields = {", ...values, "}");
  const options = [sounds.length ? "data=fields" : "json=fields", "timeout=600"];
  if (sounds.length) {
    lines.push("files = [", ...sounds.map((sound) => `    ("audio", Path(${python(sound.name)}).open("rb")),`), "]");
    options.push("files=files");
  }
  if (hasKey) options.push('headers={"Authorization": f"Bearer {os.environ[\'AUDIODIFF_API_KEY\']}"}');
  lines.push(`response = httpx.post(${url}, ${options.join(", ")})`, "response.raise_for_status()", 'Path("loop.wav").write_bytes(response.content)', "");
  return lines.join("\n");
}
