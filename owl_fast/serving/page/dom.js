// Elements from parts. Every text becomes a text node: nothing anybody said turns into markup.

export const byId = (id) => document.getElementById(id);

/** `on...` attributes are listeners; true is one without a value; false, null and undefined are left out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A symbol of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

export function button(label, symbol, onclick, attributes = {}) {
  return el(
    "button",
    { type: "button", onclick, ...attributes },
    symbol && icon(symbol),
    el("span", {}, label),
  );
}

/** A button that shows its symbol alone. */
export function tool(label, symbol, onclick, attributes = {}) {
  return el(
    "button",
    { type: "button", class: "tool", "aria-label": label, title: label, onclick, ...attributes },
    icon(symbol),
  );
}

/** Makes a textarea as high as its text; CSS says how high at most. */
export function fit(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${textarea.scrollHeight + textarea.offsetHeight - textarea.clientHeight}px`;
}

/** False where the browser forbids it. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Only https and loopback have a clipboard of their own; elsewhere a selection is copied.
    const holder = el("textarea", { class: "unseen", readonly: true });
    const before = document.activeElement;
    holder.value = text;
    document.body.append(holder);
    holder.select();
    const done = document.execCommand("copy");
    holder.remove();
    before?.focus();
    return done;
  }
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
