"use strict";
// What is decided on cards of images: keep, reject with a reason, and marks by clicks on pictures.
// The report and the page of `unseg-jax serve` share it.
const REASONS = ["inverted", "too much", "too little", "wrong thing"];

// `clicking` is the select that says what a click does; `changed` is called with a card whose
// decision is another. A card has data-name, data-size ("[height, width]"), data-of (which result
// is decided on), buttons with data-decision, a select with data-reason, and pictures in .markable.
function reviewDesk(clicking, changed) {
  const decisions = new Map(); // name → {decision, reason, clicks, of}
  const of = (card) => decisions.get(card.dataset.name) ?? {};

  function change(card, what) {
    decisions.set(card.dataset.name, { ...of(card), ...what, of: card.dataset.of });
    changed(card);
  }
  const decide = (card, decision, reason = "") => change(card, { decision, reason });

  // What was decided on an earlier result says nothing of this one; clicks are on the photograph.
  function recall(card, known = of(card)) {
    if (known.of) decisions.set(card.dataset.name, known.of === card.dataset.of ? known : { clicks: known.clicks });
  }

  // Where a picture lies within its element, which may have another shape.
  function placed(image) {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    return { left: (box.width - width) / 2, top: (box.height - height) / 2, width, height, box };
  }

  function draw(card, clicks) {
    const [height, width] = JSON.parse(card.dataset.size);
    for (const mark of card.querySelectorAll(".mark")) mark.remove();
    for (const picture of clicks.length ? card.querySelectorAll(".markable") : []) {
      const at = placed(picture.querySelector("img"));
      for (const [x, y, thing] of clicks) {
        const mark = document.createElement("span");
        mark.className = "mark";
        mark.dataset.thing = thing;
        mark.textContent = thing ? "+" : "−";
        mark.style.left = `${at.left + (x / width) * at.width}px`;
        mark.style.top = `${at.top + (y / height) * at.height}px`;
        picture.append(mark);
      }
    }
  }

  // A click adds a mark, or removes the one that it is on.
  function mark(card, picture, event) {
    const [height, width] = JSON.parse(card.dataset.size);
    const at = placed(picture.querySelector("img"));
    const x = (width * (event.clientX - at.box.left - at.left)) / at.width;
    const y = (height * (event.clientY - at.box.top - at.top)) / at.height;
    if (!(x >= 0 && y >= 0 && x < width && y < height)) return;
    const { clicks = [] } = of(card);
    const left = clicks.filter(([a, b]) => Math.hypot(a - x, b - y) * (at.width / width) > 9);
    const rounded = [x, y].map((value) => Math.floor(10 * value) / 10);
    if (left.length === clicks.length) left.push([...rounded, clicking.value === "thing"]);
    change(card, { clicks: left });
  }

  function show(card) {
    const { decision = "undecided", reason = "", clicks = [] } = of(card);
    card.dataset.decision = decision;
    for (const button of card.querySelectorAll("[data-decision]"))
      button.setAttribute("aria-pressed", button.dataset.decision === decision);
    const why = card.querySelector("[data-reason]");
    why.hidden = decision !== "reject";
    why.value = reason;
    draw(card, clicks);
  }

  function attach(card) {
    for (const button of card.querySelectorAll("[data-decision]"))
      button.addEventListener("click", () => {
        const same = card.dataset.decision === button.dataset.decision;
        decide(card, same ? "undecided" : button.dataset.decision);
      });
    const why = card.querySelector("[data-reason]");
    for (const reason of REASONS) why.add(new Option(reason));
    why.addEventListener("change", () => decide(card, "reject", why.value));
    for (const picture of card.querySelectorAll(".markable"))
      picture.addEventListener("click", (event) => {
        if (clicking.value === "open" || event.defaultPrevented) return;
        event.preventDefault();
        event.stopPropagation();
        mark(card, picture, event);
      });
    // Marks are placed anew where a picture is loaded or changes its size.
    const resized = new ResizeObserver(() => show(card));
    for (const image of card.querySelectorAll("img")) {
      image.addEventListener("load", () => show(card));
      resized.observe(image);
    }
    show(card);
  }

  function tally(cards) {
    const all = cards.map(of);
    const kept = all.filter((one) => one.decision === "keep").length;
    const rejected = all.filter((one) => one.decision === "reject").length;
    const clicks = all.reduce((sum, one) => sum + (one.clicks?.length ?? 0), 0);
    return `${kept} kept, ${rejected} rejected`
      + (clicks ? `, ${clicks} ${clicks === 1 ? "click" : "clicks"}` : "");
  }

  // As unseg_jax.export.decisions reads it. The mask of an image that was kept is an example; of an
  // inverted one, what it leaves out.
  function exported(cards) {
    const images = cards.map((card) => {
      const { decision = "undecided", reason = "", clicks = [] } = of(card);
      const { name, file, size, pieces } = card.dataset;
      const image = { name, file, size: JSON.parse(size), decision, reason, clicks };
      const example = decision === "keep" || reason === "inverted";
      return pieces && example ? { ...image, objects: JSON.parse(pieces) } : image;
    }).filter((image) => image.decision !== "undecided" || image.clicks.length);
    return { format: "unseg-jax decisions", version: 1, images };
  }

  return { decisions, decide, recall, attach, show, tally, exported };
}
