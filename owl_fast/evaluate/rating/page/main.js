// The page: questions one after another, and every mark on disk before it is shown.

import { followAppearance } from "./house/appearance.js";
import { call } from "./house/api.js";
import { byId, button, el, tool } from "./house/dom.js";
import { Sheet, TICKS, abilities, grades, wide } from "./sheet.js";

const NAME = "owl-rater"; // sessionStorage: each tab has its own rater
const KEYS = [
  ["a b c d", "grade the answer"],
  ["i v o t r m", "tick an ability, or untick it: the letter underlined in its name"],
  ["s", "tick all of them, or none"],
  ["1 … 9", "choose an answer"],
  ["j k ↓ ↑", "the next answer, the one before"],
  ["Enter", "what is next to do: the next answer without a grade, here or in another question"],
  ["n p", "the next question, the one before"],
  ["u", "undo the last change"],
  ["z", "enlarge the picture; once more: closer; Esc: back"],
  ["e", "earlier turns of the conversation"],
];

let study; // what the server says of itself
let rater;
let questions = [];
let at = 0;
let chosen = 0;
let sheet = null; // null: no question is shown
let finishing = false; // the last answer was rated just now
const history = []; // what undo takes back: {question, answer, before}
let missed = null; // the answer whose change was not saved

// --- one thing after another ---

const UNREAD = 1000; // ms for which who types goes on, and has not read yet what went wrong
const waiting = []; // what keys and clicks asked for, in their order
let busy = false;
let deaf = 0; // keys pressed before this time are those of somebody who has not read

/** deed(): runs when all before it is done and saved, and sees the page as it is then. */
async function inTurn(deed) {
  waiting.push(deed);
  if (busy) return;
  busy = true;
  try {
    while (waiting.length) await waiting.shift()();
  } finally {
    waiting.length = 0;
    busy = false;
  }
}

/** What was asked for meanwhile took for granted that this one works. Whether there was anything. */
function dropWaiting() {
  deaf = performance.now() + UNREAD;
  return waiting.splice(0).length > 0;
}

// --- the server ---

const PATIENCE = 20_000; // ms: a disk may be slow; a server that hangs must not hold up the page for ever

const post = async (path, body) => {
  const headers = { "Content-Type": "application/json" };
  const signal = AbortSignal.timeout(PATIENCE);
  try {
    return await (await call(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
  } catch (error) {
    if (!signal.aborted) throw error;
    throw new Error(`the server has not answered for ${PATIENCE / 1000} s; reload the page to see what it has kept`);
  }
};

/** change(answer): what to send. Whatever fails is said, and nothing looks as if it were saved. */
async function save(question, answer, change, undone = null) {
  const body = change(answer);
  const before = { grade: answer.grade, shown: answer.shown };
  const left = unrated();
  try {
    Object.assign(answer, await post("rate", { rater, question: question.id, answer: answer.id, ...body }));
  } catch (error) {
    if (undone) history.push(undone);
    missed = answer;
    const dropped = dropWaiting() ? " What came after it was dropped." : "";
    showTrouble(`${placeOf(question, answer)} was not saved: ${error.message}${dropped}`);
    return;
  }
  if (!undone) history.push({ question, answer, before });
  if (missed === answer) showTrouble("");
  finishing ||= left > 0 && unrated() === 0;
  refresh();
  announce(`${placeOf(question, answer)}: ${answer.grade || "no grade"}, ${answer.shown.length} ticked, saved`);
}

/** What other tabs have saved meanwhile. */
async function catchUp() {
  try {
    const now = await post("open", { rater });
    const known = new Map(questions.flatMap(({ answers }) => answers.map((one) => [one.id, one])));
    for (const { answers } of now.questions)
      for (const { id, grade, shown } of answers) if (known.has(id)) Object.assign(known.get(id), { grade, shown });
    refresh();
  } catch (error) {
    showTrouble(error.message);
  }
}

// --- marks ---

const question = () => questions[at];
const answer = () => question().answers[chosen];

const graded = (letter) => () => ({ grade: letter });
const ticked = (letter) => ({ shown }) => ({
  shown: shown.includes(letter) ? shown.filter((one) => one !== letter) : [...shown, letter],
});

const mark = (change) => save(question(), answer(), change);

function tick(letter) {
  if (question().abilities.includes(letter)) return mark(ticked(letter));
}

function tickAll() {
  const all = question().abilities;
  if (all.length) return mark(({ shown }) => ({ shown: shown.length < all.length ? all : [] }));
}

/** A click means what it was on, whatever is shown when its turn comes. */
function clicked(one, number, change = null) {
  return inTurn(() => {
    if (sheet?.question === one) choose(number);
    if (change) return save(one, one.answers[number], change);
  });
}

function undo() {
  const last = history.pop();
  if (!last) return announce("There is nothing to undo");
  const number = questions.indexOf(last.question);
  if (!sheet || number !== at) show(number);
  choose(last.question.answers.indexOf(last.answer));
  return save(last.question, last.answer, () => last.before, last);
}

// --- from question to question ---

const open = (one) => one.grade === "";
const complete = ({ answers }) => !answers.some(open);
const unrated = () => questions.flatMap(({ answers }) => answers).filter(open).length;

/** Where the first one stands that fits, of those after `start`, then from the top; -1: nowhere. */
function after(list, start, fits) {
  const later = list.findIndex((one, number) => number > start && fits(one));
  return later < 0 ? list.findIndex(fits) : later;
}

/** What is next to do: an answer of this question, or another question, that has no grade. */
function onward() {
  const number = after(question().answers, chosen, open);
  const other = after(questions, at, (one) => !complete(one));
  if (number >= 0) {
    if (number === chosen) announce(`Answer ${number + 1} has no grade yet`); // where the focus is already
    choose(number);
  } else if (other >= 0) show(other);
  else showEnd();
}

function next() {
  const left = questions.findIndex((one) => !complete(one));
  if (left < 0 && (finishing || at === questions.length - 1)) showEnd();
  else show(at < questions.length - 1 ? at + 1 : left);
}

function previous() {
  show(sheet ? Math.max(0, at - 1) : at);
}

function show(number) {
  at = number;
  finishing = false;
  const shown = question();
  sheet = new Sheet(shown, study, {
    choose: (card) => clicked(shown, card),
    grade: (card, letter) => clicked(shown, card, graded(letter)),
    tick: (card, letter) => clicked(shown, card, ticked(letter)),
    look: () => inTurn(look),
  });
  byId("main").replaceChildren(sheet.asked, sheet.answers);
  byId("main").scrollTop = 0;
  refresh();
  announce(`Question ${number + 1} of ${questions.length}: ${shown.text}`);
  choose(Math.max(0, shown.answers.findIndex(open)));
  if (!wide.matches) byId("main").scrollTop = 0; // the question first, where the answers are below it
}

function choose(number) {
  if (number < 0 || number >= question().answers.length) return;
  chosen = number;
  sheet.choose(number);
}

function showEnd() {
  finishing = false;
  sheet = null;
  byId("main").replaceChildren(
    el(
      "section",
      { class: "start" },
      el("h1", {}, "Everything is rated"),
      el("p", {}, `Thank you, ${rater}. All ${study.answers} answers have a grade. For figures and tables:`),
      el("code", {}, study.report),
      el("p", {}, "Stop the server with Ctrl-C when all raters are done."),
      el("p", {}, button("Look at the ratings again", null, () => inTurn(() => show(0)))),
    ),
  );
  refresh();
  announce("Everything is rated");
}

function refresh() {
  sheet?.refresh();
  const all = questions.reduce((sum, { answers }) => sum + answers.length, 0);
  const rated = all - unrated();
  const done = questions.filter(complete).length;
  byId("progress").textContent = `${done} of ${questions.length} questions, ${rated} of ${all} answers`;
  Object.assign(byId("bar"), { max: all, value: rated });
  byId("jump").replaceChildren(
    ...questions.map((one, number) =>
      el("option", { value: number }, `Question ${number + 1}${complete(one) ? " ✓" : ""}`),
    ),
  );
  byId("jump").value = at;
  byId("undo").disabled = !history.length;
  byId("previous").disabled = sheet !== null && at === 0;
  byId("next").hidden = byId("keys").hidden = sheet === null;
}

// --- what is said beside them ---

function placeOf(question, answer) {
  return `Question ${questions.indexOf(question) + 1}, answer ${question.answers.indexOf(answer) + 1}`;
}

const announce = (text) => (byId("status").textContent = text);

function showTrouble(text) {
  if (!text) missed = null;
  byId("trouble").hidden = !text;
  const close = tool("Close", "close", () => showTrouble(""));
  byId("trouble").replaceChildren(el("p", {}, text), close);
}

function help() {
  const dialog = byId("help-dialog");
  const keys = KEYS.flatMap(([names, what]) => [
    el("dt", {}, ...names.split(" ").map((name) => (name === "…" ? "…" : el("kbd", {}, name)))),
    el("dd", {}, what),
  ]);
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", { class: "keys" }, ...keys),
    ...(study ? [el("h2", {}, "Grades"), grades(study), el("h2", {}, "Abilities"), abilities(study)] : []),
    el("div", { class: "buttons" }, button("Close", null, () => dialog.close(), { class: "main" })),
  );
  dialog.showModal();
  dialog.scrollTop = 0; // the button that has the focus is the last thing in it
}

const picture = byId("picture-dialog");

function closer() {
  const image = picture.querySelector("img");
  const width = image.clientWidth;
  image.style.width = picture.classList.toggle("closer") ? `${2.5 * width}px` : "";
}

function look() {
  if (!question().picture) return;
  const source = `pictures/${question().id}`;
  picture.classList.remove("closer");
  picture.replaceChildren(
    el("img", { src: source, alt: `The picture of question ${question().id}`, onclick: closer }),
    tool("Close", "close", () => picture.close()),
  );
  picture.showModal();
}

// --- keys ---

const MOVES = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
const ANYWHERE = { p: previous, u: undo }; // on the last page too
const DEEDS = { Enter: onward, n: next, s: tickAll, z: look, e: () => sheet.unfold() };

function pressed(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  // Where a keyboard writes other letters, its keys count.
  const other = event.key.length === 1 && event.key > "~";
  const key = other ? event.code.replace(/^Key/, "").toLowerCase() : event.key;
  const name = key.length === 1 ? key.toLowerCase() : key;
  if (event.target.closest("input, select")) return;
  // Enter on a button or a fold is its own.
  if (name === "Enter" && event.target.closest("button, summary")) return;
  const dialog = document.querySelector("dialog[open]");
  const meant = dialog ? name === "Escape" : sheet && deedOf(name);
  if (meant) event.preventDefault();
  if (event.timeStamp >= deaf) inTurn(() => act(name, event.repeat));
}

/** A key's turn has come. Held keys move, and do nothing else. */
function act(name, held) {
  const dialog = document.querySelector("dialog[open]");
  if (dialog && name === "Escape") return dialog.close();
  if (held && !(name in MOVES)) return;
  if (dialog) return dialog === picture && name === "z" ? closer() : undefined;
  if (name === "?") return help();
  if (questions.length && (sheet || ANYWHERE[name])) return deedOf(name)?.();
}

function deedOf(name) {
  const ability = Object.keys(TICKS).find((letter) => TICKS[letter] === name);
  if (name in MOVES) return () => choose(chosen + MOVES[name]);
  if (/^[1-9]$/.test(name)) return () => choose(Number(name) - 1);
  if (name.toUpperCase() in study.grades) return () => mark(graded(name.toUpperCase()));
  if (ability) return () => tick(ability);
  return DEEDS[name] ?? ANYWHERE[name];
}

// --- the beginning ---

async function begin(name) {
  const opened = await post("open", { rater: name });
  ({ rater, questions } = opened);
  sessionStorage.setItem(NAME, rater);
  history.length = 0;
  byId("rater").textContent = rater;
  byId("rater").disabled = study.rater !== null;
  for (const id of ["where", "rater", "keys", "steps"]) byId(id).hidden = false;
  const left = questions.findIndex((one) => !complete(one));
  if (left < 0) showEnd();
  else show(left);
}

function ask() {
  sheet = null;
  questions = [];
  for (const id of ["where", "rater", "keys", "steps"]) byId(id).hidden = true;
  const field = el("input", { id: "name", name: "name", autocomplete: "off", maxlength: 60, required: true });
  const start = (name) => begin(name).then(() => showTrouble(""), (error) => showTrouble(error.message));
  const known = study.raters.map(({ name, rated }) =>
    el("button", { type: "button", onclick: () => start(name) }, name, el("small", {}, `${rated} rated`)),
  );
  const submitted = (event) => {
    event.preventDefault();
    start(field.value);
  };
  byId("main").replaceChildren(
    el(
      "section",
      { class: "start" },
      el("h1", {}, "Rate answers"),
      el(
        "p",
        {},
        `${study.questions} questions, ${study.answers} answers. You will not see whose they are; give each a grade, and `,
        "tick what it shows. Everything is saved at once: stop and come back whenever you like.",
      ),
      el(
        "form",
        { onsubmit: submitted },
        el("div", { class: "field" }, el("label", { for: "name" }, "Your name"), field),
        el("button", { class: "main" }, "Begin"),
      ),
      known.length ? el("p", {}, "Or go on as") : null,
      known.length ? el("div", { class: "known" }, ...known) : null,
    ),
  );
  field.focus();
}

async function arrive() {
  try {
    study = await (await call("raters")).json();
    const name = study.rater ?? sessionStorage.getItem(NAME);
    if (name) await begin(name);
    else ask();
  } catch (error) {
    showTrouble(error.message);
    if (study && study.rater === null) ask();
  }
}

async function changeRater() {
  sessionStorage.removeItem(NAME);
  await arrive();
}

followAppearance(byId("theme"));
byId("help").addEventListener("click", help);
byId("rater").addEventListener("click", () => inTurn(changeRater));
byId("next").addEventListener("click", () => inTurn(next));
byId("previous").addEventListener("click", () => inTurn(previous));
byId("undo").addEventListener("click", () => inTurn(undo));
byId("jump").addEventListener("change", ({ target }) => {
  const number = Number(target.value);
  inTurn(() => show(number));
});
document.addEventListener("keydown", pressed);
// A button that was clicked gives the keys back to the answers.
document.addEventListener("click", (event) => {
  if (event.detail > 0 && sheet && event.target.closest("main button, footer button, #asked summary"))
    sheet.cards[chosen].focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && questions.length) inTurn(catchUp);
});
arrive();
