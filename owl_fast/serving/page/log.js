// The conversation on the screen.

import { button, el } from "./dom.js";
import { textOf } from "./conversation.js";

const BLOCK = 2000; // characters after which a new line begins a block of its own

/** Text that grows at its end: plain text nodes in blocks, so that only the last block is laid out again. */
class GrowingText {
  element = el("div", { class: "text" });
  value = "";
  #node = null;

  append(text) {
    this.value += text;
    while (text) {
      this.#node ??= this.#open();
      const cut = text.indexOf("\n", Math.max(BLOCK - this.#node.length, 0));
      this.#node.appendData(cut < 0 ? text : text.slice(0, cut));
      text = cut < 0 ? "" : text.slice(cut + 1);
      if (cut >= 0) this.#node = this.#open();
    }
  }

  set(text) {
    if (text === this.value) return;
    if (!text.startsWith(this.value)) {
      this.element.replaceChildren();
      this.value = "";
      this.#node = null;
    }
    this.append(text.slice(this.value.length));
  }

  #open() {
    const node = document.createTextNode("");
    this.element.append(el("div", {}, node));
    return node;
  }
}

/** One message with its buttons. An assistant's text can be appended to while it is made. */
class MessageView {
  #text = new GrowingText();
  #content;
  #pending = "";
  #frame = null;
  #cover = null;

  constructor(entry, actions) {
    this.role = entry.role;
    this.who = el("h2", { class: "unseen" });
    this.body = el("div", { class: "body" });
    this.note = el("p", { class: "note" });
    const act = (label, symbol, action) =>
      button(label, symbol, (event) => action(this.entry, event.currentTarget));
    this.copy = act("Copy", "copy", actions.copy);
    this.edit = act("Edit", "edit", actions.edit);
    this.retry = act("Retry", "retry", actions.retry);
    this.continue = act("Continue", "continue", actions.continue);
    this.tools = el("div", { class: "tools" }, this.copy, this.edit, this.retry, this.continue);
    this.element = el(
      "li",
      { class: `message ${entry.role}` },
      this.who,
      this.body,
      el("div", { class: "under" }, this.note, this.tools),
    );
    this.showPicture = actions.showPicture;
  }

  update(entry, last, busy) {
    this.entry = entry;
    this.who.textContent = { user: "You", system: "System text" }[entry.role] ?? entry.model ?? "Answer";
    if (entry.role === "user") this.#showParts(entry.content);
    else {
      this.#text.set(textOf(entry.content));
      if (!this.#text.element.isConnected) this.body.replaceChildren(this.#text.element);
    }
    this.element.classList.toggle("live", Boolean(entry.live));
    this.note.textContent = entry.live ? "" : (entry.note ?? "");
    this.tools.hidden = Boolean(entry.live);
    this.edit.disabled = busy;
    this.retry.hidden = this.continue.hidden = !(last && entry.role === "assistant") || busy;
  }

  /** Shown with the next frame. */
  append(text) {
    this.#pending += text;
    this.#frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#text.append(this.#pending);
    this.#pending = "";
  }

  /** Another element in the place of the message; null brings it back. */
  cover(element) {
    this.element.classList.toggle("covered", element !== null);
    this.#cover?.remove();
    this.#cover = element;
    if (element) this.element.append(element);
  }

  /** The parts of a user's message in their order, neighbouring pictures side by side. */
  #showParts(content) {
    if (this.#content === content) return;
    this.#content = content;
    const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
    const rows = [];
    let number = 0;
    for (const part of parts) {
      if (part.type === "text") {
        const text = new GrowingText();
        text.append(part.text);
        rows.push(text.element);
        continue;
      }
      number += 1;
      const picture = this.#picture(part.image_url.url, number);
      if (rows.at(-1)?.className === "pictures") rows.at(-1).append(picture);
      else rows.push(el("div", { class: "pictures" }, picture));
    }
    this.body.replaceChildren(...rows);
  }

  #picture(url, number) {
    if (!url.startsWith("data:")) return el("span", { class: "elsewhere" }, `picture at ${url}`);
    return el(
      "button",
      { type: "button", "aria-label": `Picture ${number}, enlarge`, onclick: () => this.showPicture(url) },
      el("img", { src: url, alt: "" }),
    );
  }
}

export class Log {
  #list;
  #actions;
  #views = []; // one for each entry, in order

  /** actions: copy, edit, retry, continue (entry, button) and showPicture (url). */
  constructor(list, actions) {
    this.#list = list;
    this.#actions = actions;
  }

  show(entries, busy) {
    entries.forEach((entry, i) => {
      let view = this.#views[i];
      if (view?.role !== entry.role) {
        view = new MessageView(entry, this.#actions);
        this.#views[i]?.element.replaceWith(view.element);
        if (!view.element.isConnected) this.#list.append(view.element);
        this.#views[i] = view;
      } else if (view.entry !== entry) view.cover(null);
      view.update(entry, i === entries.length - 1, busy);
    });
    for (const view of this.#views.splice(entries.length)) view.element.remove();
  }

  view(entry) {
    return this.#views.find((view) => view.entry === entry);
  }

  get last() {
    return this.#views.at(-1);
  }
}

/** Keeps the newest in sight until the reader scrolls up, and again once they are back at the end. */
export class Follower {
  #scroller;
  #end;
  #top = 0;
  following = true;

  /** end(height): where the newest is in a content so high. changed(): it began or ceased to follow. */
  constructor(scroller, content, { end, changed }) {
    this.#scroller = scroller;
    this.#end = end;
    scroller.addEventListener(
      "scroll",
      () => {
        const up = scroller.scrollTop < this.#top;
        this.#top = scroller.scrollTop;
        const before = this.following;
        if (this.#atEnd()) this.following = true;
        else if (up) this.following = false;
        if (this.following !== before) changed();
      },
      { passive: true },
    );
    const observer = new ResizeObserver(() => this.following && this.toEnd());
    observer.observe(content);
    observer.observe(scroller);
  }

  toEnd() {
    this.#scroller.scrollTop = this.#end(this.#scroller.scrollHeight);
    this.#top = this.#scroller.scrollTop;
  }

  #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    return scrollHeight - scrollTop - clientHeight < 32;
  }
}
