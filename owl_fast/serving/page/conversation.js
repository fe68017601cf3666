// A conversation is a list of OpenAI-style messages; the file is the one the terminal's /save writes.
// An entry of the page is a message that may carry more: {role, content, model, note}.

const ROLES = ["system", "developer", "user", "assistant"];

export const textOf = (content) =>
  typeof content === "string"
    ? content
    : content
        .filter((part) => part.type === "text")
        .map((part) => part.text)
        .join("\n");

export const picturesOf = (content) =>
  typeof content === "string"
    ? []
    : content.filter((part) => part.type === "image_url").map((part) => part.image_url.url);

/** Pictures stand in front of the text. */
export function contentOf(text, urls) {
  if (!urls.length) return text;
  const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

export const messagesOf = (entries) => entries.map(({ role, content }) => ({ role, content }));

export const systemOf = (entries) => (entries[0]?.role === "system" ? entries[0].content : "");

/** The system text replaced; "" leaves the model's own. */
export function withSystem(entries, text) {
  if (text === systemOf(entries)) return entries;
  const turns = turnsOf(entries);
  return text ? [{ role: "system", content: text }, ...turns] : turns;
}

export const turnsOf = (entries) => entries.filter((entry) => entry.role !== "system");

/** Bytes that the pictures of a conversation take in a request. */
export const pictureBytes = (entries) =>
  entries.flatMap((entry) => picturesOf(entry.content)).reduce((sum, url) => sum + 0.75 * url.length, 0);

export const exportText = (entries) => `${JSON.stringify({ messages: messagesOf(entries) }, null, 1)}\n`;

/** The entries of a file; an Error says what does not fit. */
export function importText(text) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new Error("this file is not readable as JSON");
  }
  const messages = Array.isArray(raw) ? raw : raw?.messages;
  if (!Array.isArray(messages)) throw new Error('wanted {"messages": [...]} or a list of messages');
  const entries = messages.map(readMessage);
  const turns = turnsOf(entries);
  if (entries.slice(entries.length - turns.length).some((entry) => entry.role === "system")) {
    throw new Error("a system message stands after the first turn; it has to come first");
  }
  const system = entries.filter((entry) => entry.role === "system").map((entry) => entry.content);
  return withSystem(turns, system.join("\n"));
}

function readMessage(message, index) {
  const where = `message ${index}`;
  if (!ROLES.includes(message?.role)) throw new Error(`${where}: the role is none of ${ROLES.join(", ")}`);
  const role = message.role === "developer" ? "system" : message.role;
  if (typeof message.content === "string") return { role, content: message.content };
  if (!Array.isArray(message.content)) throw new Error(`${where}: wanted text or a list of parts`);
  const parts = message.content.map((part, k) => readPart(part, `${where}, part ${k}`));
  const pictures = parts.some((part) => part.type === "image_url");
  if (pictures && role !== "user") throw new Error(`${where}: only user messages carry pictures`);
  return { role, content: pictures ? parts : textOf(parts) };
}

function readPart(part, where) {
  if (part?.type === "text" && typeof part.text === "string") return { type: "text", text: part.text };
  const url = part?.image_url?.url;
  if (part?.type === "image_url" && typeof url === "string" && /^(data:image\/|https?:)/.test(url)) {
    return { type: "image_url", image_url: { url } };
  }
  if (part?.type === "image" || part?.type === "video") {
    throw new Error(
      `${where}: the ${part.type} is a file of another machine; /save in the terminal chat puts ` +
        "pictures inside",
    );
  }
  throw new Error(`${where}: wanted a text or an image_url part`);
}
