// Dark and light: as the system has it, until somebody chooses otherwise.

import { keepChoice } from "./store.js";

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

/** button: switches between the two, and is pressed while it is dark. */
export function followAppearance(button) {
  const show = () => button.setAttribute("aria-pressed", isDark());
  button.addEventListener("click", () => {
    const dark = !isDark();
    // What the system has too is no choice, so that the page goes on following it.
    const choice = dark === systemDark.matches ? null : dark ? "dark" : "light";
    if (choice) root.dataset.theme = choice;
    else delete root.dataset.theme;
    keepChoice("owl-theme", choice);
    show();
  });
  systemDark.addEventListener("change", show);
  show();
}
