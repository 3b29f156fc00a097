// What is decided on kinds of objects: a name, and whether all of a kind are dropped.

// A card has data-kinds, the kinds of its objects in order. `storage` has saved(), what was decided
// before, and save(all). Without kinds on the page, nothing is decided.
function kindsDesk(cards, storage) {
  const row = document.getElementById("kinds");
  const sections = row ? [...row.querySelectorAll(".kind")] : [];
  const names = row ? JSON.parse(row.dataset.names) : [];
  const dropped = new Set(row ? JSON.parse(row.dataset.dropped) : []);
  // A name that the run knows already, as from decisions that it was made with, is there to change.
  const own = names.map((known, at) => (known === `kind ${at + 1}` ? "" : known));
  const name = (kind) => own[kind - 1] || names[kind - 1];
  const kindsOf = (card) => (card?.dataset.kinds ?? "").split(" ").filter(Boolean).map(Number);

  // Numbers may be others after the next run: a decision goes to the kind of most of its examples.
  const byName = new Map(cards.map((card) => [card.dataset.name, kindsOf(card)]));
  // `now` is what another tab decided; else what was saved adds to what the run knows.
  function recall(now = false) {
    for (const saved of storage.saved()) {
      const votes = new Map();
      for (const [image, at] of saved.examples) {
        const kind = byName.get(image)?.[at];
        if (kind) votes.set(kind, (votes.get(kind) ?? 0) + 1);
      }
      const [kind, most] = [...votes].sort((a, b) => b[1] - a[1])[0] ?? [];
      if (!(most * 2 > saved.examples.length)) continue;
      if (now || saved.name) own[kind - 1] = saved.name;
      if (saved.dropped) dropped.add(kind);
      else if (now) dropped.delete(kind);
    }
  }
  recall();

  function save() {
    storage.save(sections.map((section) => {
      const kind = Number(section.dataset.kind);
      const examples = JSON.parse(section.dataset.examples);
      return { examples, name: own[kind - 1], dropped: dropped.has(kind) };
    }));
  }

  function show() {
    for (const section of sections) {
      const kind = Number(section.dataset.kind);
      const gone = dropped.has(kind);
      section.dataset.dropped = gone;
      const field = section.querySelector("input");
      if (field !== document.activeElement) field.value = own[kind - 1];
      section.querySelector("[data-drop]").setAttribute("aria-pressed", gone);
    }
    for (const label of document.querySelectorAll("[data-kind-name]")) {
      const kind = Number(label.dataset.kindName);
      label.textContent = name(kind);
      label.classList.toggle("dropped", dropped.has(kind));
    }
  }

  for (const section of sections) {
    const kind = Number(section.dataset.kind);
    const field = section.querySelector("input");
    field.addEventListener("input", () => { own[kind - 1] = field.value.trim(); save(); });
    section.querySelector("[data-drop]").addEventListener("click", () => {
      if (!dropped.delete(kind)) dropped.add(kind);
      save();
    });
  }

  const named = () => own.filter(Boolean).length;
  return {
    recall,
    show,
    has: (card, kind) => kindsOf(card).includes(Number(kind)),
    tally: () => (named() ? `, ${named()} named` : "")
      + (dropped.size ? `, ${dropped.size} ${dropped.size === 1 ? "kind" : "kinds"} dropped` : ""),
    // As unseg_jax.export.decisions reads it.
    exported: () => named() || dropped.size
      ? { kinds: { told: JSON.parse(row.dataset.told), names: names.map((_, at) => name(at + 1)), dropped: [...dropped] } }
      : {},
  };
}
