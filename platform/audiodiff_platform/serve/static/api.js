// Calls of the HTTP API. The key is kept in this tab and sent with each call.

const KEY = "audiodiff-key";

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // The answer of a proxy has no body of ours: its status says what there is to say.
  }
  throw new ApiError(response.status, message, response.headers.get("Retry-After"));
}

/** List the models that are served. */
export async function models(signal) {
  return (await (await call("v1/models", { signal })).json()).models;
}

/** Yield the server-sent events of a request as [name, data]. `body` is an object (JSON) or FormData. */
export async function* events(path, body, signal) {
  const isForm = body instanceof FormData;
  const response = await call(path, {
    method: "POST",
    signal,
    body: isForm ? body : JSON.stringify(body),
    headers: { Accept: "text/event-stream", ...(isForm ? {} : { "Content-Type": "application/json" }) },
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) yield event;
    }
  }
}

/** Return [name, data] of an event, or null for a comment. */
export function parsed(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}
