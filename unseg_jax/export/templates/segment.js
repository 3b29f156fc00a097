"use strict";
// Sorting, filtering, and keep or reject. Without scripts the page still shows everything.
(() => {
  const cards = [...document.querySelectorAll(".card")];
  const list = document.getElementById("cards");
  const sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const tally = document.getElementById("tally");
  const key = "unseg-jax " + location.pathname;
  const decisions = new Map();
  let current = null;

  // Storage may be forbidden for files; decisions then last as long as the page.
  const store = (work) => { try { return work(); } catch { return null; } };
  const saved = store(() => JSON.parse(localStorage.getItem(key))) ?? [];
  for (const [name, decision] of saved) decisions.set(name, decision);

  const value = (card, name) => Number(card.dataset[name]);
  const orders = {
    check: (a, b) => value(b, "check") - value(a, "check"),
    name: (a, b) => a.dataset.file.localeCompare(b.dataset.file),
    confidence: (a, b) => value(a, "confidence") - value(b, "confidence"),
    coverage: (a, b) => value(b, "coverage") - value(a, "coverage"),
    objects: (a, b) => value(b, "objects") - value(a, "objects"),
  };

  const visible = () => [...list.children].filter((card) => !card.hidden);

  function show() {
    for (const card of [...cards].sort(orders[sort.value])) list.append(card);
    let kept = 0, rejected = 0;
    for (const card of cards) {
      const decision = decisions.get(card.dataset.name) ?? "undecided";
      kept += decision === "keep";
      rejected += decision === "reject";
      card.dataset.decision = decision;
      for (const button of card.querySelectorAll("[data-decision]"))
        button.setAttribute("aria-pressed", button.dataset.decision === decision);
      card.hidden = !(filter.value === "all" || filter.value === decision ||
        (filter.value === "check" && card.dataset.check === "1"));
    }
    tally.value = `${visible().length} shown, ${kept} kept, ${rejected} rejected`;
  }

  function decide(card, decision) {
    if (decision === "undecided") decisions.delete(card.dataset.name);
    else decisions.set(card.dataset.name, decision);
    store(() => localStorage.setItem(key, JSON.stringify([...decisions])));
    show();
  }

  function go(card) {
    if (!card) return;
    current?.classList.remove("current");
    current = card;
    card.classList.add("current");
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const among = visible();
    const at = among.indexOf(current);
    go(among[Math.min(among.length - 1, Math.max(0, at + by))]);
  }

  function compare(card, on) {
    const overlay = card?.querySelector(".overlay img");
    const photograph = card?.querySelector(".photograph img");
    if (!overlay || !photograph) return;
    overlay.dataset.drawn ??= overlay.src;
    overlay.src = on ? photograph.src : overlay.dataset.drawn;
  }

  for (const card of cards) {
    for (const button of card.querySelectorAll("[data-decision]"))
      button.addEventListener("click", () => {
        const same = card.dataset.decision === button.dataset.decision;
        decide(card, same ? "undecided" : button.dataset.decision);
      });
    const overlay = card.querySelector("a.overlay");
    let held = 0;
    overlay?.addEventListener("pointerdown", () => { held = Date.now(); compare(card, true); });
    for (const end of ["pointerup", "pointerleave", "pointercancel"])
      overlay?.addEventListener(end, () => compare(card, false));
    // A long press compares; a click opens the file.
    overlay?.addEventListener("click", (event) => {
      if (Date.now() - held > 250) event.preventDefault();
    });
    overlay?.addEventListener("contextmenu", (event) => {
      if (Date.now() - held > 250) event.preventDefault();
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const verdict = { y: "keep", n: "reject", u: "undecided" }[event.key];
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "c") compare(current, true);
    else if (verdict && current) {
      const among = visible();
      const next = among[among.indexOf(current) + 1];
      decide(current, verdict);
      if (verdict !== "undecided") go(next ?? current);
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === "c") compare(current, false);
  });

  document.getElementById("export").addEventListener("click", () => {
    const quote = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    const lines = cards.map((card) => card.dataset)
      .filter((data) => data.decision !== "undecided")
      .map((data) => `${quote(data.name)},${quote(data.file)},${data.decision}\r\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["name,file,decision\r\n", ...lines], { type: "text/csv" }));
    link.download = "keep.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  sort.addEventListener("change", show);
  filter.addEventListener("change", show);
  for (const hidden of document.querySelectorAll("#bar, .keys, .decide")) hidden.hidden = false;
  show();
})();
