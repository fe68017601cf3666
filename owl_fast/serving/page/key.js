// The API key, where the server asks for one.

import { apiKey } from "./api.js";
import { el } from "./dom.js";

/** True when there is one to try; reason: why the server asks. */
export function askKey(dialog, reason) {
  const input = el("input", {
    type: "password",
    id: "key",
    required: true,
    autocomplete: "off",
    pattern: "[!-~]+",
    title: "letters, digits and signs of ASCII, without spaces",
  });
  dialog.replaceChildren(
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "key-title" }, "This server asks for an API key"),
      el("p", { class: "reason" }, reason),
      el(
        "div",
        { class: "field wide" },
        el("label", { for: "key" }, "API key"),
        input,
        el("small", {}, "It stays in this tab, and is forgotten when the tab closes."),
      ),
      el(
        "div",
        { class: "buttons" },
        el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        el("button", { class: "main", value: "use" }, "Use it"),
      ),
    ),
  );
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) =>
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "use") apiKey.set(input.value);
        done(dialog.returnValue === "use");
      },
      { once: true },
    ),
  );
}
