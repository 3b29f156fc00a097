"use strict";
// What is decided on cards of images: keep, reject with a reason, and marks, clicked or painted.
// The report and the page of `unseg-jax serve` share it.
const REASONS = ["inverted", "too much", "too little", "wrong thing"];

// The parser knows the namespace, so that the report holds no address.
const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

function svgElement(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// A page has #clicking, a select that says what the pointer does, #brush, the width of a stroke in
// pixels of the screen, and #undo. `changed` is called with a card whose decision is another. A card
// has data-name, data-size ("[height, width]"), data-of (which result is decided on), buttons with
// data-decision, a select with data-reason, and pictures in .markable.
function reviewDesk(changed) {
  const [clicking, brush, undo] = ["clicking", "brush", "undo"].map((id) => document.getElementById(id));
  const decisions = new Map(); // name → {decision, reason, clicks, strokes, of}
  const shown = new Map(); // name → card
  const before = []; // [name, its marks], before each change of marks
  const of = (card) => decisions.get(card.dataset.name) ?? {};
  const marksOf = (card) => {
    const { clicks = [], strokes = [] } = of(card);
    return { clicks, strokes };
  };

  function change(card, what) {
    decisions.set(card.dataset.name, { ...of(card), ...what, of: card.dataset.of });
    changed(card);
  }
  const decide = (card, decision, reason = "") => change(card, { decision, reason });

  function remark(card, what) {
    before.push([card.dataset.name, marksOf(card)]);
    undo.disabled = false;
    change(card, what);
  }

  function takeBack() {
    if (!before.length) return;
    const [name, marks] = before.pop();
    undo.disabled = !before.length;
    change(shown.get(name), marks);
  }

  // What was decided on an earlier result says nothing of this one; marks are on the photograph.
  function recall(card, known = of(card)) {
    const { clicks, strokes } = known;
    if (known.of) decisions.set(card.dataset.name, known.of === card.dataset.of ? known : { clicks, strokes });
  }

  // Where a picture lies within its element, which may have another shape.
  function placed(image) {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
    return { left: (box.width - width) / 2, top: (box.height - height) / 2, width, height, box };
  }

  function draw(card, { clicks, strokes }) {
    const [height, width] = JSON.parse(card.dataset.size);
    for (const mark of card.querySelectorAll(".mark, .strokes")) mark.remove();
    for (const picture of clicks.length + strokes.length ? card.querySelectorAll(".markable") : []) {
      const at = placed(picture.querySelector("img"));
      const lines = svgElement("svg", { class: "strokes", viewBox: `0 0 ${width} ${height}` });
      for (const side of ["left", "top", "width", "height"]) lines.style[side] = `${at[side]}px`;
      for (const { thing, radius, points } of strokes)
        lines.append(svgElement("polyline", { "data-thing": thing, "stroke-width": 2 * radius, points: points.join(" ") }));
      picture.append(lines);
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

  // Where the pointer is in pixels of the image, how many of them a pixel of the screen is, and
  // whether it is inside.
  function pointed(card, picture, event) {
    const [height, width] = JSON.parse(card.dataset.size);
    const at = placed(picture.querySelector("img"));
    const scale = width / at.width;
    const x = scale * (event.clientX - at.box.left - at.left);
    const y = scale * (event.clientY - at.box.top - at.top);
    const inside = x >= 0 && y >= 0 && x < width && y < height;
    // Rounded down, so that it stays inside.
    const point = [[x, width], [y, height]].map(([value, end]) =>
      Math.floor(10 * Math.min(Math.max(value, 0), end - 0.1)) / 10);
    return { point, scale, inside };
  }

  // A click adds a mark, or removes the one that it is on.
  function click(card, picture, event) {
    const { point: [x, y], scale, inside } = pointed(card, picture, event);
    if (!inside) return;
    const { clicks, strokes } = marksOf(card);
    const left = clicks.filter(([a, b]) => Math.hypot(a - x, b - y) > 9 * scale);
    const lines = [...picture.querySelectorAll("polyline")];
    const on = lines.findLastIndex((line) => line.isPointInStroke(new DOMPoint(x, y)));
    if (left.length < clicks.length) remark(card, { clicks: left });
    else if (on >= 0) remark(card, { strokes: strokes.toSpliced(on, 1) });
    else remark(card, { clicks: [...clicks, [x, y, clicking.value === "thing"]] });
  }

  // A press that moves paints a stroke; one that does not is a click.
  function paints(card, picture) {
    let stroke = null;
    let painted = false;
    for (const other of ["dragstart", "contextmenu"]) // of links, which would end a stroke
      picture.addEventListener(other, (event) => stroke && event.preventDefault());
    picture.addEventListener("pointerdown", (event) => {
      painted = false;
      if (clicking.value === "open" || !event.isPrimary || event.button) return;
      const { point, scale, inside } = pointed(card, picture, event);
      if (!inside) return;
      const radius = Math.max(5, Math.round(5 * brush.value * scale)) / 10;
      stroke = { thing: clicking.value === "thing", radius, points: [point] };
      picture.setPointerCapture(event.pointerId);
    });
    picture.addEventListener("pointermove", (event) => {
      if (!stroke || !event.isPrimary) return;
      const { point: [x, y], scale } = pointed(card, picture, event);
      const [a, b] = stroke.points.at(-1);
      if (Math.hypot(a - x, b - y) < Math.max(4 * scale, stroke.radius / 2)) return;
      stroke.points.push([x, y]);
      const { clicks, strokes } = marksOf(card);
      draw(card, { clicks, strokes: [...strokes, stroke] }); // and kept when the pointer is lifted
    });
    picture.addEventListener("pointerup", (event) => {
      if (!stroke || !event.isPrimary) return;
      painted = stroke.points.length > 1;
      if (painted) remark(card, { strokes: [...marksOf(card).strokes, stroke] });
      stroke = null;
    });
    picture.addEventListener("pointercancel", () => {
      stroke = null;
      show(card);
    });
    picture.addEventListener("click", (event) => {
      if (clicking.value === "open" || event.defaultPrevented) return;
      event.preventDefault();
      event.stopPropagation();
      if (!painted) click(card, picture, event);
    });
  }

  function show(card) {
    const { decision = "undecided", reason = "" } = of(card);
    card.dataset.decision = decision;
    for (const button of card.querySelectorAll("[data-decision]"))
      button.setAttribute("aria-pressed", button.dataset.decision === decision);
    const why = card.querySelector("[data-reason]");
    why.hidden = decision !== "reject";
    why.value = reason;
    draw(card, marksOf(card));
  }

  function attach(card) {
    shown.set(card.dataset.name, card);
    for (const button of card.querySelectorAll("[data-decision]"))
      button.addEventListener("click", () => {
        const same = card.dataset.decision === button.dataset.decision;
        decide(card, same ? "undecided" : button.dataset.decision);
      });
    const why = card.querySelector("[data-reason]");
    for (const reason of REASONS) why.add(new Option(reason));
    why.addEventListener("change", () => decide(card, "reject", why.value));
    for (const picture of card.querySelectorAll(".markable")) paints(card, picture);
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
    const marks = all.reduce((sum, one) => sum + (one.clicks?.length ?? 0) + (one.strokes?.length ?? 0), 0);
    return `${kept} kept, ${rejected} rejected`
      + (marks ? `, ${marks} ${marks === 1 ? "mark" : "marks"}` : "");
  }

  // As unseg_jax.export.decisions reads it. The mask of an image that was kept is an example; of an
  // inverted one, what it leaves out.
  function exported(cards) {
    const images = cards.map((card) => {
      const { decision = "undecided", reason = "" } = of(card);
      const { name, file, size, pieces } = card.dataset;
      const image = { name, file, size: JSON.parse(size), decision, reason, ...marksOf(card) };
      const example = decision === "keep" || reason === "inverted";
      return pieces && example ? { ...image, objects: JSON.parse(pieces) } : image;
    }).filter((image) => image.decision !== "undecided" || image.clicks.length + image.strokes.length);
    return { format: "unseg-jax decisions", version: 1, images };
  }

  function mark(what) {
    clicking.value = document.body.dataset.clicking = what;
  }

  clicking.addEventListener("change", () => mark(clicking.value));
  undo.addEventListener("click", takeBack);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target.matches("input:not([type=range])")) return;
    event.preventDefault();
    takeBack();
  });
  mark(clicking.value);
  return { decisions, decide, mark, recall, attach, show, tally, exported };
}
