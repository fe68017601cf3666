// Files and text that are dropped or pasted somewhere on the page.

/** overlay: shown while files hang over the page. files(list) and text(string) take what came. */
export function takeIn({ overlay, files, text }) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    overlay.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) overlay.hidden = true; // out of the window
  });
  document.addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    files([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea, dialog")) return;
    event.preventDefault();
    files([...event.clipboardData.files]);
    text(event.clipboardData.getData("text/plain"));
  });
}
