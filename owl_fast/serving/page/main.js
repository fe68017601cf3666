// The page: one conversation, and what people do with it.

import { ServerError, apiKey, listModels, streamAnswer } from "./api.js";
import { followAppearance } from "./appearance.js";
import { Composer } from "./composer.js";
import {
  exportText,
  importText,
  messagesOf,
  pictureBytes,
  picturesOf,
  systemOf,
  textOf,
  turnsOf,
  withSystem,
} from "./conversation.js";
import { button, byId, copyText, download, el, tool } from "./dom.js";
import { takeIn } from "./intake.js";
import { askKey } from "./key.js";
import { Follower, Log } from "./log.js";
import { Meter } from "./meter.js";
import { Settings } from "./settings.js";
import { Store, draft, keepChoice, readChoice } from "./store.js";

const NO_MODEL = "The server has not said yet which model it has.";

let entries = []; // never changed in place
let models = [];
let running = null; // the answer that is made now: {stop(), keep(), done}
let replacing = null; // the entries that lost an answer, for which Undo is offered, and wait for another

const log = new Log(byId("log"), {
  copy,
  edit,
  showPicture,
  retry: () => retry(),
  continue: () => start(),
});
const follower = new Follower(byId("scroller"), byId("column"), {
  end: (height) => (turnsOf(entries).length ? height : 0), // the welcome is read from its top
  changed: () => (byId("newest").hidden = follower.following),
});
const composer = new Composer({
  label: "Message",
  placeholder: "Ask something",
  enter: ask,
  used: () => pictureBytes(entries),
  changed: draft.set,
  say,
});
const settings = new Settings(byId("settings-dialog"), {
  system: {
    get: () => systemOf(entries),
    async set(text) {
      await running?.done; // an answer that is under way belongs to the old one
      const old = entries;
      if (text === systemOf(old)) return;
      change(withSystem(old, text));
      sayUndo("The system text was changed.", old);
    },
  },
  changed: showState,
  forgetKey() {
    apiKey.forget();
    settings.dialog.close();
    say("The API key is forgotten.");
  },
});
const store = new Store((reason) => say(`A reload will not bring this conversation back: ${reason}`));

// --- the conversation --------------------------------------------------------------------------------------

function change(next) {
  entries = next;
  log.show(entries, running !== null);
  store.save(entries);
  showState();
}

async function ask() {
  const content = running ? null : await composer.content();
  if (content === null || running || !connected()) return;
  composer.set("");
  change([...entries, { role: "user", content }]);
  start();
}

/** Has the conversation answered, or its last answer continued. What Undo could bring back before is past. */
function start() {
  if (running || !connected()) return;
  if (entries !== replacing) say("");
  const abort = new AbortController();
  running = { stop: () => abort.abort() };
  running.done = answer(abort.signal);
  focusComposer(); // the button that was pressed may be gone
}

function connected() {
  if (!models.length) say(NO_MODEL);
  return models.length > 0;
}

async function answer(signal) {
  const model = models.find(({ id }) => id === byId("model").value);
  const begun = entries.at(-1).role === "assistant" ? entries.at(-1) : null;
  const before = begun ? entries.slice(0, -1) : entries;
  const request = { model: model.id, messages: messagesOf(entries), ...settings.values };
  if (begun) Object.assign(request, { continue_final_message: true, add_generation_prompt: false });

  const meter = new Meter();
  let text = begun?.content ?? "";
  const said = (more) => ({ role: "assistant", content: text, model: model.id, ...more });
  running.keep = () => store.save((entries = [...before, said({ live: true })]));
  showTrouble(null);
  change([...before, said({ live: true })]);
  follow();
  announce("Answering");
  const view = log.last;
  const timers = [
    setInterval(() => (view.note.textContent = meter.now()), 100),
    setInterval(running.keep, 1000),
  ];
  let failure = null;
  try {
    for await (const chunk of streamAnswer(request, signal)) {
      const piece = meter.take(chunk);
      text += piece;
      view.append(piece);
    }
  } catch (error) {
    failure = error;
    meter.reason = signal.aborted ? "stopped" : "error";
  }
  timers.forEach(clearInterval);
  view.flush();
  running = null;
  const nothing = text === (begun?.content ?? "");
  const last = failure && nothing ? begun : said({ note: meter.summary(model.max_model_len) });
  change(last ? [...before, last] : before);
  if (failure && !signal.aborted) trouble(failure);
  else announce(nothing ? "No answer" : `Answer: ${text.slice(0, 2000)}`);
}

/** Says what went wrong, in the server's words, with what can be done. */
async function trouble(failure) {
  if (failure.status === 401 && (await askKey(byId("key-dialog")))) return start();
  const known = failure instanceof ServerError ? failure.message : `This page failed: ${failure.message}`;
  const wait = failure.retryAfter ? `The server asks to wait ${failure.retryAfter} s.` : null;
  const answered = entries.at(-1)?.role === "assistant";
  const ways =
    failure.code === "context_length_exceeded"
      ? [button("New conversation", "new", startNew)] // it would not fit the next time either
      : answered
        ? [button("Continue", "continue", start), button("Retry", "retry", retry)]
        : [button("Retry", "retry", start)];
  if (!answered) ways.push(button("Take back", "edit", takeBack));
  showTrouble(known, ways, "trouble", wait);
}

/** The unanswered question back into the composer. */
function takeBack() {
  const question = entries.at(-1);
  if (!composer.empty) return void say("There is another message below; send or clear it first.");
  composer.set(question.content);
  showTrouble(null);
  change(entries.slice(0, -1));
  composer.focus();
}

function retry() {
  const same =
    settings.values.temperature === 0
      ? " At temperature 0 it stays the likeliest one; settings vary it."
      : "";
  answerAgain(entries.slice(0, -1), `The earlier answer was replaced.${same}`);
}

/** Has `next` answered in the place of the conversation. Asking once more after a failure keeps the Undo. */
function answerAgain(next, text) {
  if (running || !connected()) return;
  const old = entries;
  change(next);
  sayUndo(text, old);
  replacing = next;
  start();
}

async function copy(entry, opener) {
  const done = await copyText(textOf(entry.content));
  const label = opener.lastElementChild;
  label.textContent = done ? "Copied" : "Not allowed";
  announce(done ? "Copied" : "The browser does not allow copying");
  setTimeout(() => (label.textContent = "Copy"), 1500);
}

function edit(entry, opener) {
  if (entry.role === "system") return settings.open(apiKey.get() !== null);
  const asked = entry.role === "user";
  const view = log.view(entry);
  const close = () => {
    view.cover(null);
    opener.focus();
  };
  const editor = new Composer({
    label: asked ? "Edit the message" : "Edit the answer",
    enter: asked ? () => save(true) : null,
    answer: !asked,
    used: () => pictureBytes(entries.filter((other) => other !== entry)),
    say,
  });
  async function save(again) {
    const content = await editor.content();
    const index = entries.indexOf(entry);
    if (content === null) return say("A message needs words or a picture.");
    if (running || index < 0 || (again && !connected())) return;
    close();
    const changed = sameContent(content, entry.content) ? entry : { ...entry, content };
    const old = entries;
    const after = old.length - 1 - index;
    if (again && after) {
      const text = after > 1 ? "What came after this message is gone." : "The earlier answer was replaced.";
      return answerAgain([...old.slice(0, index), changed], text);
    }
    if (changed !== entry) {
      change(old.with(index, changed));
      sayUndo("The message was changed.", old);
    }
    if (again) start();
  }
  editor.buttons.append(
    button("Cancel", null, close),
    button(asked ? "Only change" : "Change", null, () => save(false), asked ? {} : { class: "main" }),
  );
  if (asked) editor.buttons.append(button("Ask again", null, () => save(true), { class: "main" }));
  editor.element.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
  });
  view.cover(editor.element);
  editor.set(entry.content);
  editor.focus();
}

const sameContent = (one, other) =>
  textOf(one) === textOf(other) && picturesOf(one).join() === picturesOf(other).join();

/** Another conversation in the place of this one. */
async function replace(next, text) {
  running?.stop();
  await running?.done;
  const old = entries;
  showTrouble(null);
  change(next);
  follow();
  if (turnsOf(old).length) sayUndo(text, old);
  else say(text);
}

async function startNew() {
  await replace(
    entries.filter((entry) => entry.role === "system"),
    "A new conversation.",
  );
  focusComposer();
}

async function importFile(file) {
  try {
    await replace(importText(await file.text()), `${file.name} is open.`);
  } catch (error) {
    say(`${file.name}: ${error.message}.`);
  }
}

function exportFile() {
  running?.keep();
  download(`owl-${new Date().toISOString().slice(0, 16).replace(":", "")}.json`, exportText(entries));
}

// --- the server --------------------------------------------------------------------------------------------

async function connect() {
  let said = null;
  for (;;) {
    try {
      models = await listModels();
      break;
    } catch (failure) {
      if (failure.status === 401) {
        if (await askKey(byId("key-dialog"))) continue;
        return showTrouble(failure.message, [button("Enter the API key", null, connect)]);
      }
      if (failure.message !== said) showTrouble(failure.message, [], "trouble", "Trying again …");
      said = failure.message;
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
  showTrouble(null);
  if (byId("notice").firstChild?.textContent === NO_MODEL) say("");
  const chosen = readChoice("owl-model", null);
  byId("model").replaceChildren(
    ...models.map(({ id }) => el("option", { value: id, selected: id === chosen }, id)),
  );
  showState();
}

// --- what is shown -----------------------------------------------------------------------------------------

const send = tool("Send", "send", ask, { class: "tool main" });
// The second click of a double click on Send is no stop.
const stop = tool("Stop", "stop", (event) => event.detail < 2 && running?.stop(), { class: "tool main" });

function showState() {
  const name = byId("model").value || "";
  const busy = running !== null;
  const here = document.activeElement;
  send.hidden = busy;
  stop.hidden = !busy;
  if (here === send && busy) stop.focus();
  if (here === stop && !busy) focusComposer();
  byId("welcome").hidden = turnsOf(entries).length > 0;
  byId("export").disabled = !entries.length;
  byId("model").hidden = models.length < 2;
  byId("model-name").hidden = models.length > 1;
  byId("model-name").textContent = name || "owl_fast";
  document.querySelector(".model-here").textContent = name || "the model";
  const changed = settings.summary;
  byId("footnote").textContent =
    (name ? `${name} answers here, and can be wrong` : "Waiting for the server") +
    (changed ? ` · ${changed}` : "");
  if (!busy && entries.at(-1)?.role === "user" && !byId("after").children.length) {
    showTrouble(
      "This message has no answer yet.",
      [button("Ask again", "retry", start), button("Take back", "edit", takeBack)],
      "quiet",
    );
  }
}

function showTrouble(text, buttons = [], kind = "trouble", hint = null) {
  const shown =
    text &&
    el(
      "div",
      { class: kind, role: kind === "trouble" ? "alert" : null },
      el("p", {}, text),
      hint && el("small", {}, hint),
      el("div", { class: "tools" }, ...buttons),
    );
  byId("after").replaceChildren(...(shown ? [shown] : []));
}

function say(text, action = null) {
  const close = tool("Dismiss", "close", () => say(""));
  byId("notice").replaceChildren(...(text ? [el("span", {}, text), action, close].filter(Boolean) : []));
}

function sayUndo(text, old) {
  say(
    text,
    button("Undo", null, async () => {
      running?.stop();
      await running?.done;
      showTrouble(null);
      change(old);
      say("");
      focusComposer();
    }),
  );
}

/** For those who hear the page; the answer itself is announced once, when it is complete. */
function announce(text) {
  byId("status").textContent = text;
}

function showPicture(url) {
  const dialog = byId("picture-dialog");
  dialog.replaceChildren(
    tool("Close", "close", () => dialog.close()),
    el("img", { src: url, alt: "The picture, enlarged" }),
  );
  dialog.onclick = () => dialog.close();
  dialog.showModal();
}

function follow() {
  follower.following = true;
  byId("newest").hidden = true;
  follower.toEnd();
}

/** Not on a phone, whose keyboard would cover the answer. */
function focusComposer() {
  if (!matchMedia("(pointer: coarse)").matches) composer.focus();
}

// --- what people do ----------------------------------------------------------------------------------------

const importInput = el("input", {
  type: "file",
  accept: ".json,application/json",
  hidden: true,
  id: "import-file",
  onchange: ({ target }) => {
    importFile(target.files[0]);
    target.value = "";
  },
});

byId("composer").replaceWith(composer.element);
composer.element.id = "composer";
composer.set(draft.get());
composer.buttons.append(send, stop);
byId("import").after(importInput);
byId("new").onclick = startNew;
byId("import").onclick = () => importInput.click();
byId("export").onclick = exportFile;
byId("settings").onclick = () => settings.open(apiKey.get() !== null);
byId("newest").onclick = follow;
byId("model").onchange = () => {
  keepChoice("owl-model", byId("model").value);
  showState();
};
byId("example").onclick = async () => {
  const picture = await (await fetch("example.png")).blob();
  composer.set("What color is the star?");
  await composer.add([new File([picture], "example.png", { type: "image/png" })]);
  composer.focus();
};
addEventListener("pagehide", () => running?.keep?.());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.stop();
});
takeIn({
  overlay: byId("drop"),
  text: (text) => composer.insert(text),
  files(files) {
    const saved = files.find((file) => file.name.endsWith(".json"));
    if (saved) importFile(saved);
    else composer.add(files).then(focusComposer);
  },
});
followAppearance(byId("theme"));

const kept = (await store.load())
  .filter((entry) => !entry.live || entry.content)
  .map((entry) => (entry.live ? { ...entry, live: false, note: "broke off when the page was left" } : entry));
change(entries.length ? entries : kept);
follow();
composer.focus();
connect();
