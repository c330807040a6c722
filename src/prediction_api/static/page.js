// The pages work without this; it saves loading them again, and uploads that would be refused.
"use strict";

const FIRST = 700, LONGEST = 10_000; // milliseconds between two looks, longer each time
const under_way = () => document.querySelector('[data-state="under way"]');

// Beside UTC, the time where the reader is.
function localise(root) {
  if (!new Date().getTimezoneOffset()) return;
  for (const time of root.querySelectorAll("time[datetime]:not(:has(.local))")) {
    const local = document.createElement("span");
    local.className = "local";
    const told = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    local.textContent = ` (${told} here)`;
    time.append(local);
  }
}

// Takes over what has changed, child by child, so that focus, selection and scrolling stay.
function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  const ours = [...old.childNodes], theirs = [...fresh.childNodes];
  const alike = old.nodeName === fresh.nodeName && ours.length === theirs.length && ours.length > 0 &&
    ours.every((child, place) => child.nodeName === theirs[place].nodeName);
  if (!alike) return old.replaceWith(fresh);
  for (const { name, value } of [...fresh.attributes]) old.setAttribute(name, value);
  ours.forEach((child, place) => update(child, theirs[place]));
}

async function follow() {
  for (let pause = FIRST; under_way(); pause = Math.min(LONGEST, pause * 1.3)) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (document.hidden) continue;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.status === 429 || answer.status >= 500) continue;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      localise(fresh);
      update(document.querySelector("main"), fresh.querySelector("main"));
      document.title = fresh.title;
    } catch {
      // the server is not there at the moment
    }
  }
}

document.addEventListener("change", (event) => {
  const most = Number(event.target.form?.dataset.most);
  const file = event.target.files?.[0];
  if (most && file) {
    const large = file.size + 1000 > most;
    event.target.setCustomValidity(large ? `At most ${(most / 1e6).toLocaleString()} MB` : "");
    event.target.reportValidity();
  }
});

localise(document);
follow();
