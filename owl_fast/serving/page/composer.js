// Where a message is written: pictures, text, buttons. The one below the conversation, and one for each edit.

import { el, fit, icon, tool } from "./dom.js";
import { contentOf, picturesOf, textOf } from "./conversation.js";
import { MAX_PICTURES, readPicture } from "./pictures.js";

export class Composer {
  #pictures = []; // {name, url}
  #reading = Promise.resolve();

  /**
   * label: of the text field. enter: what Enter does; without, a new line. answer: it is one, which has no
   * pictures and keeps its spaces. used(): bytes of the pictures elsewhere in the conversation.
   * changed(text): called after every change of the text. say(text): tells the reader something.
   */
  constructor({ label, placeholder = "", enter = null, answer = false, used, changed = () => {}, say }) {
    Object.assign(this, { answer, used, changed, say });
    this.text = el("textarea", {
      "aria-label": label,
      placeholder,
      rows: 1,
      enterkeyhint: enter && "send",
      oninput: () => this.#textChanged(),
      onkeydown: (event) => {
        if (!enter || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        enter();
      },
    });
    this.thumbs = el("ul", { class: "thumbs", "aria-label": "Pictures of this message", hidden: true });
    this.file = el("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      hidden: true,
      tabindex: -1,
      "aria-label": "Picture files",
      onchange: () => {
        this.add([...this.file.files]);
        this.file.value = "";
      },
    });
    this.choose = tool("Add pictures", "picture", () => this.file.click());
    this.buttons = el("div", { class: "buttons" });
    const row = el("div", { class: "row" }, ...(answer ? [] : [this.choose, this.file]), this.buttons);
    this.element = el(
      "div",
      { class: "composer", onpaste: (event) => this.#paste(event) },
      this.thumbs,
      this.text,
      row,
    );
  }

  /** Takes picture files, one after the other, in their order. */
  add(files) {
    for (const file of files) this.#reading = this.#reading.then(() => this.#addOne(file));
    return this.#reading;
  }

  async #addOne(file) {
    if (this.#pictures.length >= MAX_PICTURES) {
      this.say(`${MAX_PICTURES} pictures a message at most; ${file.name || "one more"} was left out.`);
      return;
    }
    try {
      const here = this.#pictures.reduce((sum, picture) => sum + 0.75 * picture.url.length, 0);
      const picture = await readPicture(file, here + this.used());
      if (picture.note) this.say(`${picture.note}.`);
      this.#pictures.push(picture);
      this.#show();
    } catch (error) {
      this.say(`${error.message}.`);
    }
  }

  /** What is there once every picture is read; null when there is nothing. */
  async content() {
    await this.#reading;
    if (this.empty) return null;
    const text = this.answer ? this.text.value : this.text.value.trim();
    return contentOf(
      text,
      this.#pictures.map((picture) => picture.url),
    );
  }

  set(content) {
    this.text.value = textOf(content);
    this.#pictures = picturesOf(content).map((url, i) => ({ name: `picture ${i + 1}`, url }));
    this.#show();
    this.#textChanged();
  }

  get empty() {
    return !this.text.value.trim() && !this.#pictures.length;
  }

  focus() {
    this.text.focus();
  }

  insert(text) {
    this.focus();
    this.text.setRangeText(text, this.text.selectionStart, this.text.selectionEnd, "end");
    this.#textChanged();
  }

  #textChanged() {
    fit(this.text);
    this.changed(this.text.value);
  }

  /** Pictures are taken in; text goes where the cursor is, as ever. */
  #paste(event) {
    if (this.answer) return;
    this.add([...event.clipboardData.files]);
    event.stopPropagation();
  }

  #show() {
    this.thumbs.hidden = !this.#pictures.length;
    this.thumbs.replaceChildren(
      ...this.#pictures.map((picture) =>
        el(
          "li",
          {},
          el("img", { src: picture.url, alt: picture.name, title: picture.name }),
          el(
            "button",
            { type: "button", "aria-label": `Remove ${picture.name}`, onclick: () => this.#remove(picture) },
            icon("close"),
          ),
        ),
      ),
    );
  }

  #remove(picture) {
    this.#pictures = this.#pictures.filter((other) => other !== picture);
    this.#show();
    this.focus();
  }
}
