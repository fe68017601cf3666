// One question on the screen: what was asked, and a card for each answer.

import { el, button } from "./house/dom.js";

export const wide = matchMedia("(min-width: 60rem)"); // two columns
// Abilities -> the key that ticks them: a letter that begins a word of their name.
export const TICKS = { a: "i", b: "v", c: "o", d: "t", e: "r", f: "m" };

export class Sheet {
  /**
   * act: {choose(number), grade(number, letter), tick(number, letter), look()}; study: grades, abilities,
   * meanings.
   */
  constructor(question, study, act) {
    this.question = question;
    const { picture, text, answers } = question;
    const earlier = answers[0].earlier.map((turn) => turn.question);
    this.asked = el(
      "section",
      { id: "asked", "aria-label": "Question", tabindex: 0 },
      picture
        ? el(
            "button",
            { type: "button", class: "look", "aria-label": "Enlarge the picture", onclick: act.look },
            el("img", { src: `pictures/${question.id}`, alt: `The picture of question ${question.id}` }),
          )
        : null,
      el("h1", {}, text),
      earlier.length
        ? el(
            "div",
            { class: "earlier-asked" },
            el("p", {}, "Asked before, in the same conversation:"),
            el("ol", {}, ...earlier.map((asked) => el("li", {}, asked))),
          )
        : null,
      fold(study, question.abilities),
    );
    this.cards = answers.map((answer, number) => this.#card(answer, number, study, act));
    this.answers = el("section", { id: "answers", "aria-label": "Answers", tabindex: 0 }, ...this.cards);
    this.refresh();
  }

  #card(answer, number, study, act) {
    const grades = Object.entries(study.grades).map(([grade, meaning]) =>
      button(grade, null, () => act.grade(number, grade), {
        "data-grade": grade,
        title: meaning,
        "aria-label": `${grade}: ${meaning}`,
      }),
    );
    const ticks = this.question.abilities.map((letter) => {
      const name = study.abilities[letter];
      const at = Math.max(0, name.search(new RegExp(`\\b${TICKS[letter]}`)));
      return el(
        "button",
        {
          type: "button",
          "data-tick": letter,
          title: study.meanings[letter],
          "aria-label": name,
          onclick: () => act.tick(number, letter),
        },
        el("span", {}, name.slice(0, at), el("u", {}, name[at]), name.slice(at + 1)),
      );
    });
    return el(
      "article",
      { class: "card", tabindex: -1, onclick: (event) => chosenBy(event) && act.choose(number) },
      el("h2", {}, String(number + 1)),
      answer.earlier.length ? before(answer.earlier) : null,
      el("div", { class: "text" }, answer.text),
      answer.failed ? el("span", { class: "note" }, "The system gave no answer.") : null,
      el(
        "div",
        { class: "marks" },
        el("div", { class: "grades", role: "group", "aria-label": "Grade" }, ...grades),
        ticks.length ? el("div", { class: "ticks", role: "group", "aria-label": "Shows" }, ...ticks) : null,
      ),
    );
  }

  /** Shows what is on disk. */
  refresh() {
    this.question.answers.forEach((answer, number) => {
      const card = this.cards[number];
      card.classList.toggle("rated", answer.grade !== "");
      const said = answer.grade ? `, rated ${answer.grade}` : "";
      card.setAttribute("aria-label", `Answer ${number + 1} of ${this.cards.length}${said}`);
      for (const one of card.querySelectorAll("[data-grade]"))
        one.setAttribute("aria-pressed", one.dataset.grade === answer.grade);
      for (const one of card.querySelectorAll("[data-tick]"))
        one.setAttribute("aria-pressed", answer.shown.includes(one.dataset.tick));
    });
  }

  choose(number) {
    this.cards.forEach((card, other) => card.classList.toggle("chosen", other === number));
    const card = this.cards[number];
    if (!card.contains(document.activeElement)) card.focus({ preventScroll: true });
    const tall = card.offsetHeight > window.innerHeight * 0.7;
    card.scrollIntoView({ block: tall ? "start" : "nearest" });
  }

  /** Opens what was said before, or closes it. */
  unfold() {
    const all = this.answers.querySelectorAll("details");
    const open = [...all].some((one) => !one.open);
    for (const one of all) one.open = open;
  }
}

// Whoever marks a text to copy it, or opens the earlier turns, keeps the focus there.
const chosenBy = (event) => !event.target.closest("summary") && getSelection().isCollapsed;

function before(earlier) {
  const turns = earlier.flatMap(({ question, answer }) => [
    el("dt", {}, question),
    el("dd", {}, answer ?? "(no answer)"),
  ]);
  const many = earlier.length === 1 ? "Its earlier answer" : `Its ${earlier.length} earlier answers`;
  return el("details", {}, el("summary", {}, many), el("dl", {}, ...turns));
}

let unfolded = null; // as the rater left it

/** What to rate by. */
function fold(study, letters) {
  const ticks = letters.length
    ? [el("p", {}, "Below each answer, tick the abilities that it shows:"), abilities(study, letters)]
    : [];
  const details = el(
    "details",
    { class: "about", open: unfolded ?? wide.matches },
    el("summary", { onclick: () => (unfolded = !details.open) }, letters.length ? "Grades and abilities" : "Grades"),
    grades(study),
    ...ticks,
  );
  return details;
}

export const grades = (study) => terms("Grades", "letters", Object.entries(study.grades));

/** letters: of the abilities; all of them unless told. */
export const abilities = (study, letters = Object.keys(study.abilities)) =>
  terms("Abilities", "names", letters.map((letter) => [study.abilities[letter], study.meanings[letter]]));

const terms = (label, kind, pairs) =>
  el(
    "dl",
    { class: `rubric ${kind}`, "aria-label": label },
    ...pairs.flatMap(([term, meaning]) => [el("dt", {}, term), el("dd", {}, meaning)]),
  );
