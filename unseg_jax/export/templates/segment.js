// Sorting, filtering, decisions and marks. Without scripts the page still shows everything.
(() => {
  const cards = [...document.querySelectorAll(".card")];
  const list = document.getElementById("cards");
  const sort = document.getElementById("sort");
  const filter = document.getElementById("filter");
  const tally = document.getElementById("tally");
  const key = "unseg-jax " + location.pathname;
  const clicking = document.getElementById("clicking");
  let current = null;

  // Either storage may be forbidden for files, or full. What is not in the first lasts as long as the
  // tab, and the page asks before it is left without an export.
  const unkept = new Set();
  addEventListener("beforeunload", (event) => unkept.size && event.preventDefault());
  // For all tabs of this report, for this tab, and with its entry in the history: where memory is
  // short, Chromium drops from storage what it has not written yet.
  const entry = {
    getItem: (of) => history.state?.[of] ?? null,
    setItem: (of, text) => history.replaceState({ ...history.state, [of]: text }, ""),
  };
  const stores = [() => localStorage, () => sessionStorage, () => entry];
  function store(of, saved) {
    const text = JSON.stringify(saved);
    const kept = stores.map((one) => { try { one().setItem(of, text); return true; } catch { return false; } });
    if (kept[0]) unkept.delete(of); else unkept.add(of);
  }
  const keep = (of, value) => store(of, { at: Date.now(), value });
  const read = (one, of) => { try { return JSON.parse(one().getItem(of)); } catch { return null; } };
  function recalled(of) {
    const [newest] = stores.map((one) => read(one, of)).filter(Boolean)
      .map((saved) => Array.isArray(saved) ? { at: 0, value: saved } : saved)  // a report made before
      .sort((a, b) => b.at - a.at);
    if (newest) store(of, newest);
    return newest?.value ?? [];
  }
  const desk = reviewDesk(() => {
    keep(key, [...desk.decisions]);
    show();
  });
  const kinds = kindsDesk(cards, {
    saved: () => recalled(key + " kinds"),
    save: (all) => { keep(key + " kinds", all); show(); },
  });
  function recall() {
    const saved = new Map(recalled(key));
    for (const card of cards) desk.recall(card, saved.get(card.dataset.name));
  }
  for (const card of cards) {
    const { coverage, objects, confidence } = card.dataset;
    card.dataset.of = `${coverage} ${objects} ${confidence}`;
  }
  recall();
  // The same report in another tab: what is decided there is not overwritten from here.
  addEventListener("storage", (event) => {
    if (event.key === key) recall();
    else if (event.key === key + " kinds") kinds.recall(true);
    else return;
    show();
  });

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
    for (const card of cards) {
      desk.show(card);
      const { decision, check } = card.dataset;
      const [, kind] = filter.value.split("kind ");
      card.hidden = !(filter.value === "all" || filter.value === decision ||
        (filter.value === "check" && check === "1") || (kind && kinds.has(card, kind)));
    }
    kinds.show();
    tally.value = `${visible().length} shown, ${desk.tally(cards)}${kinds.tally()}`;
  }

  function choose(card) {
    current?.classList.remove("current");
    current = card;
    card.classList.add("current");
  }

  function go(card) {
    if (!card) return;
    choose(card);
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
    const wanted = on ? photograph.src : overlay.dataset.drawn;
    if (overlay.src !== wanted) overlay.src = wanted;
  }

  for (const card of cards) {
    card.addEventListener("click", () => choose(card), true);
    const overlay = card.querySelector("a.overlay");
    let held = 0;
    overlay?.addEventListener("pointerdown", (event) => {
      held = event.timeStamp;
      compare(card, clicking.value === "open");
    });
    for (const end of ["pointerup", "pointerleave", "pointercancel"])
      overlay?.addEventListener(end, () => compare(card, false));
    // A long press compares; a click opens the file, or marks.
    overlay?.addEventListener("click", (event) => {
      if (clicking.value === "open" && event.timeStamp - held > 250) event.preventDefault();
    });
    overlay?.addEventListener("contextmenu", (event) => {
      if (event.timeStamp - held > 250) event.preventDefault();
    });
    desk.attach(card);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
    const verdict = { y: "keep", n: "reject", u: "undecided" }[event.key];
    const reason = REASONS[Number(event.key) - 1];
    const marks = { "+": "thing", "=": "thing", "-": "background" }[event.key];
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "c") compare(current, true);
    else if (marks) desk.mark(clicking.value === marks ? "open" : marks);
    else if ((verdict || reason) && current) {
      const among = visible();
      const next = among[among.indexOf(current) + 1];
      desk.decide(current, verdict ?? "reject", reason);
      if (verdict !== "undecided") go(next ?? current);
    } else return;
    event.preventDefault();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === "c") compare(current, false);
  });

  document.getElementById("export").addEventListener("click", () => {
    const text = JSON.stringify({ ...desk.exported(cards), ...kinds.exported() });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    URL.revokeObjectURL(link.href);
    unkept.clear();
  });

  addEventListener("resize", show);
  sort.addEventListener("change", show);
  filter.addEventListener("change", show);
  for (const button of document.querySelectorAll("[data-show-kind]"))
    button.addEventListener("click", () => {
      const wanted = `kind ${button.dataset.showKind}`;
      filter.value = filter.value === wanted ? "all" : wanted;
      show();
    });
  for (const hidden of document.querySelectorAll("#bar, .keys, .decide")) hidden.hidden = false;
  show();
})();
