// How answers are made, in the server's names. What is left empty is not sent: the server's default holds.

import { el, fit } from "./dom.js";
import { keepChoice, readChoice } from "./store.js";

const CHOICE = "owl-settings";
const NUMBERS = [
  [
    "temperature",
    "Temperature",
    "0 takes the likeliest token, above 0 samples",
    { min: 0, max: 2, step: "any" },
  ],
  ["top_p", "Top p", "sample among the likeliest tokens that sum to p", { min: 0.01, max: 1, step: "any" }],
  ["top_k", "Top k", "sample among the k likeliest tokens", { min: 0, step: 1 }],
  [
    "min_p",
    "Min p",
    "only tokens at least p times as likely as the likeliest",
    { min: 0, max: 0.99, step: "any" },
  ],
  [
    "repetition_penalty",
    "Repetition penalty",
    "above 1 makes tokens already said less likely",
    { min: 0.01, max: 2, step: "any" },
  ],
  ["no_repeat_ngram_size", "No repeat", "never say the same N tokens twice", { min: 0, step: 1 }],
  ["max_tokens", "Max tokens", "length of an answer at most", { min: 1, step: 1 }],
  ["seed", "Seed", "same seed, same answer", { step: 1 }],
];
const DEFAULTS = { temperature: 0 };
// The server's: texts that end an answer, and characters of one.
const STOPS = 4;
const STOP_CHARACTERS = 256;

export class Settings {
  values = { ...DEFAULTS, ...readChoice(CHOICE, {}) };

  /** system: {get(), set(text)} of the conversation. changed(): called after every change. */
  constructor(dialog, { system, changed, forgetKey }) {
    Object.assign(this, { dialog, system, changed });
    this.text = el("textarea", {
      id: "setting-system",
      rows: 3,
      placeholder: "the model's own",
      "aria-describedby": "hint-system",
      oninput: () => fit(this.text),
      onchange: () => system.set(this.text.value.trim()),
    });
    this.stop = el("textarea", {
      id: "setting-stop",
      rows: 1,
      "aria-describedby": "hint-stop",
      placeholder: "none",
      oninput: () => {
        fit(this.stop);
        this.#checkStop();
      },
      onchange: () => this.stop.validity.valid && this.#set("stop", this.#stops()),
    });
    this.inputs = NUMBERS.map(([name, , , attributes]) =>
      el("input", {
        type: "number",
        id: `setting-${name}`,
        name,
        "aria-describedby": `hint-${name}`,
        inputmode: "decimal",
        placeholder: "default",
        autocomplete: "off",
        ...attributes,
        onchange: ({ target }) =>
          target.validity.valid && this.#set(name, target.value === "" ? null : target.valueAsNumber),
      }),
    );
    this.forget = el("button", { type: "button", onclick: forgetKey }, "Forget the API key");
    dialog.append(
      el(
        "form",
        { method: "dialog" },
        el("h2", { id: "settings-title", tabindex: -1, autofocus: true }, "Settings"),
        field("system", "System prompt", "stands at the head of this conversation", this.text, "wide"),
        ...NUMBERS.map(([name, label, hint], i) => field(name, label, hint, this.inputs[i])),
        field("stop", "Stop", "texts that end the answer, one a line, four at most", this.stop, "wide"),
        el(
          "div",
          { class: "buttons" },
          el("button", { type: "button", onclick: () => this.#reset() }, "Defaults"),
          this.forget,
          el("button", { class: "main" }, "Done"),
        ),
      ),
    );
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  }

  /** hasKey: whether there is one to forget. */
  open(hasKey) {
    this.#fill();
    this.forget.hidden = !hasKey;
    this.dialog.showModal();
    fit(this.text);
    fit(this.stop);
  }

  /** What differs from the defaults, for people. */
  get summary() {
    return Object.entries(this.values)
      .filter(([name, value]) => value !== DEFAULTS[name])
      .map(([name, value]) => `${name.replaceAll("_", " ")} ${name === "stop" ? value.length : value}`)
      .join(" · ");
  }

  #fill() {
    this.text.value = this.system.get();
    this.stop.value = (this.values.stop ?? []).join("\n");
    for (const input of this.inputs) input.value = this.values[input.name] ?? "";
    this.#checkStop();
  }

  #stops() {
    return this.stop.value.split("\n").filter(Boolean);
  }

  #checkStop() {
    const stops = this.#stops();
    const long = stops.some((text) => [...text].length > STOP_CHARACTERS);
    this.stop.setCustomValidity(
      stops.length > STOPS
        ? "Four lines at most, please."
        : long
          ? `A line may have ${STOP_CHARACTERS} characters at most.`
          : "",
    );
  }

  #set(name, value) {
    const { [name]: _, ...others } = this.values;
    const empty = value === null || value.length === 0;
    this.values = {
      ...others,
      ...(empty ? name in DEFAULTS && { [name]: DEFAULTS[name] } : { [name]: value }),
    };
    this.#changed();
  }

  #reset() {
    this.values = { ...DEFAULTS };
    this.#fill();
    this.#changed();
  }

  #changed() {
    keepChoice(CHOICE, this.values);
    this.changed();
  }
}

function field(name, label, hint, input, kind = "") {
  return el(
    "div",
    { class: `field ${kind}` },
    el("label", { for: `setting-${name}` }, label),
    input,
    el("small", { id: `hint-${name}` }, hint),
  );
}
