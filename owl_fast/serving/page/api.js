// The server: its models, and answers as they are made.

const KEY = "owl-api-key"; // sessionStorage: gone with the tab

/**
 * What the server said, word for word, or what happened to the connection. status 0: it said nothing. code:
 * its name for the reason, if it has one.
 */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** [{id, ...}], the model itself first. */
export async function listModels() {
  const response = await call("v1/models");
  const listed = await response.json().catch(() => null);
  if (!Array.isArray(listed?.data) || !listed.data.length)
    throw new ServerError("The server lists no model.");
  return listed.data;
}

/** The chunks of an answer. ServerError: refused, gone wrong or broken off; AbortError by `signal`. */
export async function* streamAnswer(request, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk === null) throw new ServerError("The server sent something that is no part of an answer.");
    const { error } = chunk;
    const { status } = response;
    if (error) throw new ServerError(error.message ?? String(error), { status, code: error.code });
    yield chunk;
  }
  throw new ServerError("The connection broke off in the middle of the answer.");
}

/** The server's reply; ServerError when it refuses or cannot be reached. */
export async function call(path, options = {}) {
  const key = apiKey.get();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it running, and is this device connected?");
  }
  if (response.ok) return response;
  const { status } = response;
  if (status === 401) throw new ServerError("This server asks for an API key.", { status });
  const said = parse(await response.text().catch(() => ""))?.error;
  throw new ServerError(said?.message ?? `The server answered ${status} and gave no reason.`, {
    status,
    code: said?.code,
    retryAfter: Number(response.headers.get("Retry-After")) || null,
  });
}

/** The data of each server-sent event; comments and other fields are passed over. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trimStart();
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("The connection broke off in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** An object, or null. */
function parse(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}
