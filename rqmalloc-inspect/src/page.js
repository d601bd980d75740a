// Shows each second what is so then. Without this the page is complete, and stays as it was.
const pause = document.getElementById("pause"), lost = document.getElementById("lost");
const address = new URL(location.href);
address.searchParams.delete("trimmed");
history.replaceState(null, "", address);
const fragment = address.href.replace(/#.*/, "") + (address.search ? "&" : "?") + "fragment";
let paused = false;
pause.hidden = false;
pause.onclick = () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", paused);
  pause.textContent = paused ? "Go on" : "Pause";
};
function show(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const selection = getSelection();
  for (const section of document.querySelectorAll("main > section")) {
    const other = fresh.getElementById(section.id);
    // What is being read with the mouse stays.
    if (!other || (!selection.isCollapsed && selection.containsNode(section, true))) continue;
    const focus = section.contains(document.activeElement) && document.activeElement.getAttribute("href");
    const left = [...section.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    section.replaceChildren(...other.childNodes);
    section.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = left[index] || 0; });
    if (focus) section.querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
}
async function update() {
  if (!paused && !document.hidden) {
    try {
      const answer = await fetch(fragment, { cache: "no-store" });
      if (!answer.ok) throw answer.status;
      const text = await answer.text();
      if (!paused) show(text);
      lost.hidden = true;
    } catch {
      lost.hidden = false;
    }
  }
  setTimeout(update, 1000);
}
setTimeout(update, 1000);
