// The pages work without this; it saves loading them again, and uploads that would be refused.
"use strict";

const under_way = () => document.querySelector('[data-state="under way"]');

async function follow() {
  while (under_way()) {
    await new Promise((resolve) => setTimeout(resolve, 700));
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.status === 429 || answer.status >= 500) continue;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
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

follow();
