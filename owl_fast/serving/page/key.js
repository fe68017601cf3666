// The API key, where the server asks for one.

import { apiKey } from "./api.js";
import { el } from "./dom.js";

/** True when there is one to try. The one that is there already was refused. */
export function askKey(dialog) {
  const refused = apiKey.get() !== null;
  const input = el("input", {
    type: "password",
    id: "key",
    required: true,
    autocomplete: "off",
    pattern: "[!-~]+",
    title: "letters, digits and signs of ASCII, without spaces",
    "aria-invalid": refused ? "true" : null,
    "aria-describedby": "key-about key-refused key-kept",
  });
  dialog.replaceChildren(
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "key-title" }, "This server asks for an API key"),
      el(
        "p",
        { id: "key-about" },
        "A key is a password to this server. Whoever runs the server has it, and can give it to you.",
      ),
      el(
        "div",
        { class: "field wide" },
        el("label", { for: "key" }, "API key"),
        input,
        refused ? el("p", { id: "key-refused" }, "This key was not accepted.") : null,
        el("small", { id: "key-kept" }, "It stays in this tab, and is forgotten when the tab closes."),
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
