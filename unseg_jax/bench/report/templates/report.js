"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const words = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

  // Light and dark: the system's choice unless the button was used.
  find("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const now = root.dataset.theme || system;
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // Tables sort by their headings: numbers from the largest, text from A; blanks stay last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const text = heading.classList.contains("text");
        const before = heading.getAttribute("aria-sort");
        const up = before ? before === "descending" : text;
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.cells[column];
          const value = cell.dataset.value ?? cell.textContent.trim();
          if (text) return value === "–" ? null : value;
          return value === "" || isNaN(parseFloat(value)) ? null : parseFloat(value);
        };
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [key(row), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = text ? a.localeCompare(b) : a - b;
          return up ? order : -order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // A cell of the matrix of differences says all about its pair below the table.
  for (const event of ["click", "focusin"]) {
    find("pairs-table")?.addEventListener(event, ({ target }) => {
      const words = target.closest("button")?.title;
      if (words) find("pair-words").textContent = words;
    });
  }

  // Pictures lie in script elements as base64, which costs nothing until they are shown.
  const encoded = (index) => {
    const place = data.pictures[index];
    return place < 0 ? [] : find(`picture-${place}`).textContent.split("|");
  };
  const picture = (text, kind, className) => {
    const image = new Image();
    image.src = `data:image/${kind};base64,${text}`;
    image.alt = "";
    image.decoding = "async";
    if (className) image.className = className;
    return image;
  };
  const tile = (label, number, parts, error) => {
    const box = document.createElement("div");
    box.className = "tile";
    const frame = document.createElement("div");
    frame.className = parts.length ? "frame" : "frame missing";
    if (parts.length > 1) frame.classList.add("found");
    if (parts.length) frame.append(...parts);
    else frame.textContent = error || "no mask";
    const line = document.createElement("div");
    line.className = "words";
    const left = document.createElement("span");
    left.textContent = label;
    left.title = label;
    const right = document.createElement("span");
    right.textContent = number;
    line.append(left, right);
    box.append(frame, line);
    return box;
  };
  const tiles = (index, shown, detailed) => {
    const [image, truth, ...masks] = encoded(index);
    const under = (mask) => [picture(image, "jpeg"), picture(mask, "png", "mask")];
    const result = [tile("image", "", image ? [picture(image, "jpeg")] : [])];
    if (truth) result.push(tile("truth", "", under(truth)));
    for (const method of shown) {
      const name = data.methods[method];
      const iou = data.iou[method][index];
      const dice = data.dice[method][index];
      const number = iou === null ? "" : detailed
        ? `IoU ${words(iou)}, Dice ${words(dice)}` : words(iou);
      const error = data.errors[name]?.[data.ids[index]];
      const found = masks[method] && !error;
      result.push(tile(name, number, found ? under(masks[method]) : [], error));
    }
    return result;
  };

  // The viewer: one image large, arrow keys go on in the gallery's order.
  const viewer = find("viewer");
  let order = [];
  let position = 0;
  const show = (at) => {
    position = (at + order.length) % order.length;
    const index = order[position];
    find("viewer-title").textContent = data.ids[index];
    const everything = data.methods.map((_, method) => method);
    find("viewer-tiles").replaceChildren(...tiles(index, everything, true));
  };
  const open = (index) => {
    if (!order.includes(index)) order = [index, ...order];
    show(order.indexOf(index));
    if (!viewer.open) viewer.showModal();
  };
  find("close").addEventListener("click", () => viewer.close());
  find("previous").addEventListener("click", () => show(position - 1));
  find("next").addEventListener("click", () => show(position + 1));
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(position - 1);
    if (event.key === "ArrowRight") show(position + 1);
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => cards.get(order[position])?.firstChild.focus());

  // Scatter plots: a point is an image, and opens it.
  const scatter = (chart, across, up, labels) => {
    // Up to 1; times up to five steps of 1, 2 or 5 and zeros.
    let last = 1;
    if (chart.id === "plot-seconds") {
      const step = across.reduce((top, value) => Math.max(top, value ?? 0), 0) / 5 || 0.2;
      const power = 10 ** Math.floor(Math.log10(step));
      last = 5 * power * [1, 2, 5, 10].find((factor) => factor * power >= 0.999 * step);
    }
    const x = (value) => 50 + 395 * value / last;
    const y = (value) => 410 - 395 * value;
    const digits = Math.max(0, -Math.floor(Math.log10(last / 5)));
    let marks = "";
    for (let step = 0; step <= 5; step += 1) {
      const tick = step / 5;
      marks += `<line class="grid" x1="50" x2="445" y1="${y(tick)}" y2="${y(tick)}"/>`
        + `<line class="grid" y1="15" y2="410" x1="${x(tick * last)}" x2="${x(tick * last)}"/>`
        + `<text x="42" y="${y(tick) + 4}" text-anchor="end">${tick.toFixed(1)}</text>`
        + `<text x="${x(tick * last)}" y="428" text-anchor="middle">${(tick * last).toFixed(digits)}</text>`;
    }
    if (chart.id === "scatter-chart") marks += `<line class="mean" x1="50" y1="410" x2="445" y2="15"/>`;
    data.ids.forEach((id, index) => {
      const [a, b] = [across[index], up[index]];
      if (a === null || b === null) return;
      marks += `<circle cx="${x(a).toFixed(1)}" cy="${y(b).toFixed(1)}" r="4" data-index="${index}"/>`;
    });
    chart.innerHTML = marks + `<text x="247" y="452" text-anchor="middle" class="across"></text>`
      + `<text transform="rotate(-90 12 212)" x="12" y="212" text-anchor="middle" class="up"></text>`;
    chart.querySelector(".across").textContent = labels[0];
    chart.querySelector(".up").textContent = labels[1];
  };
  for (const chart of document.querySelectorAll(".scatter")) {
    chart.addEventListener("click", (event) => {
      const index = event.target.dataset?.index;
      if (index !== undefined) open(Number(index));
    });
  }

  // What goes with the IoU of one method.
  const draw = () => {
    const method = find("plot-method").selectedIndex;
    for (const name of ["confidence", "size", "seconds"]) {
      const chart = find(`plot-${name}`);
      const rho = data.rho[name][method];
      scatter(chart, data[name][method], data.iou[method],
        [chart.dataset.label, `IoU of ${data.methods[method]}`]);
      document.querySelector(`[data-rho="${name}"]`).textContent =
        rho === null ? "" : `ρ = ${rho.toFixed(2).replace("-", "−")}`;
    }
  };
  find("plot-method")?.addEventListener("change", draw);
  if (find("plot-method")) draw();

  // Method against method.
  const chart = find("scatter-chart");
  if (chart) {
    const draw = () => {
      const across = find("scatter-x").selectedIndex;
      const up = find("scatter-y").selectedIndex;
      const names = [data.methods[across], data.methods[up]];
      scatter(chart, data.iou[across], data.iou[up], names.map((name) => `IoU of ${name}`));
      const pairs = data.iou[across].map((a, index) => [a, data.iou[up][index]])
        .filter(([a, b]) => a !== null && b !== null);
      const count = (holds) => pairs.filter(([a, b]) => holds(a, b)).length;
      find("scatter-words").textContent = `${names[1]} is better on ${count((a, b) => b > a)}, `
        + `worse on ${count((a, b) => b < a)}, equal on ${count((a, b) => a === b)}.`;
    };
    find("scatter-x").addEventListener("change", draw);
    find("scatter-y").addEventListener("change", draw);
    draw();
  }

  // Every chart can be saved as an SVG of its own, and the table in the formats of `bench table`.
  const save = (name, text, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const styles = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "font-size",
    "font-family"];
  for (const chart of document.querySelectorAll("svg.chart")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "save";
    button.textContent = "Save as SVG";
    button.setAttribute("aria-label", `Save as SVG: ${chart.getAttribute("aria-label")}`);
    button.addEventListener("click", () => {
      // In light colours, whatever the page's are: pictures go onto white paper.
      const root = document.documentElement;
      const theme = root.dataset.theme;
      root.dataset.theme = "light";
      const copy = chart.cloneNode(true);
      const copies = copy.querySelectorAll("*");
      chart.querySelectorAll("*").forEach((part, index) => {
        const shown = getComputedStyle(part);
        copies[index].removeAttribute("style");
        for (const style of styles) copies[index].setAttribute(style, shown.getPropertyValue(style));
      });
      if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
      copy.removeAttribute("style");
      copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
      const figure = chart.closest("figure")?.querySelector("figcaption").firstChild.textContent;
      const name = (figure || chart.id || chart.getAttribute("aria-label").split(";")[0]).trim();
      save(`${name.replace(/[^\w.-]+/g, "-")}.svg`, copy.outerHTML, "image/svg+xml");
    });
    chart.after(button);
  }
  find("tables")?.addEventListener("click", ({ target }) => {
    const { form, text } = target.dataset;
    if (!form) return;
    find("table-text").textContent = text;
    find("table-text").hidden = false;
    const suffix = { latex: "tex", csv: "csv", markdown: "md" }[form];
    save(`table.${suffix}`, `${text}\n`, "text/plain");
  });

  // Another run over the same images, as `bench compare` sets one against another.
  const SAMPLES = 2000;
  const randomly = (seed) => () => {  // mulberry32: the same numbers each time
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const paired = (differences) => {
    const random = randomly(0);
    const resampled = () => mean(differences.map(
      () => differences[Math.floor(random() * differences.length)]));
    const means = Array.from({ length: SAMPLES }, resampled).sort((a, b) => a - b);
    const flipped = () => mean(differences.map((value) => (random() < 0.5 ? value : -value)));
    const edge = Math.abs(mean(differences)) - 1e-12;
    const extreme = Array.from({ length: SAMPLES }, flipped)
      .filter((value) => Math.abs(value) >= edge).length;
    return [means[Math.floor(0.025 * SAMPLES)], means[Math.ceil(0.975 * SAMPLES) - 1],
      (extreme + 1) / (SAMPLES + 1)];
  };
  find("other-run")?.addEventListener("change", async ({ target }) => {
    const there = new Map();
    try {
      for (const line of (await target.files[0].text()).split("\n").filter(Boolean)) {
        const { method, id, iou } = JSON.parse(line);
        there.set(`${method}\n${id}`, iou ?? 0);
      }
    } catch {
      there.clear();
    }
    const signed = (value) => (100 * value).toFixed(1).replace(/^(?=[\d])/, "+")
      .replace("-", "−").replace(/^.0\.0$/, "0.0");
    const rows = data.methods.flatMap((method, row) => {
      const pairs = data.ids.map((id, index) => [there.get(`${method}\n${id}`), data.iou[row][index] ?? 0])
        .filter(([other]) => other !== undefined);
      if (!pairs.length) return [];
      const differences = pairs.map(([other, own]) => own - other);
      const [low, high, p] = paired(differences);
      const better = differences.filter((value) => value > 0).length;
      const worse = differences.filter((value) => value < 0).length;
      return [[method, pairs.length, ...[0, 1].map((at) => (100 * mean(pairs.map((pair) => pair[at]))).toFixed(1)),
        signed(mean(differences)), `${signed(low)} to ${signed(high)}`, `${better}, ${worse}`, p.toFixed(3)]];
    });
    const body = find("other-table").tBodies[0];
    body.replaceChildren();
    for (const cells of rows) {
      const row = body.insertRow();
      cells.forEach((text, at) => {
        const cell = row.appendChild(document.createElement(at ? "td" : "th"));
        cell.textContent = text;
      });
    }
    find("other-table").parentElement.hidden = !rows.length;
    find("other-words").textContent = rows.length ? "" : "That file has no method and image in common with this run.";
  });

  // The gallery: empty cards for all images, filled when they come near the screen.
  const cards = new Map();
  const list = find("cards");
  if (!list) return;
  const boxes = [...document.querySelectorAll("#shown input")];
  const shown = () => (boxes.length
    ? boxes.filter((box) => box.checked).map((box) => Number(box.value)) : [0]);
  const filled = new Set();
  const fill = (index) => {
    const body = document.createElement("div");
    body.className = "tiles";
    body.append(...tiles(index, shown(), false));
    const button = cards.get(index).firstChild;
    button.querySelector(".tiles")?.remove();
    button.append(body);
    filled.add(index);
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      const index = Number(entry.target.dataset.index);
      if (!filled.has(index)) fill(index);
    }
  }, { rootMargin: "400px" });
  data.ids.forEach((id, index) => {
    if (data.pictures[index] < 0) return;
    const card = document.createElement("li");
    card.dataset.index = index;
    const button = document.createElement("button");
    button.type = "button";
    const line = document.createElement("div");
    line.className = "name";
    const name = document.createElement("b");
    name.textContent = id;
    const number = document.createElement("span");
    line.append(name, number);
    button.append(line);
    button.addEventListener("click", () => open(index));
    card.append(button);
    cards.set(index, card);
    watch.observe(card);
  });
  const arrange = () => {
    const method = find("sort-method").selectedIndex;
    const how = find("sort-order").value;
    const wanted = find("find").value.trim().toLowerCase();
    const spread = (index) => {
      const values = data.iou.map((row) => row[index]).filter((value) => value !== null);
      return values.length > 1 ? Math.max(...values) - Math.min(...values) : null;
    };
    const key = (index) => (how === "spread" ? spread(index) : data.iou[method][index]);
    const keyed = [...cards.keys()]
      .filter((index) => data.ids[index].toLowerCase().includes(wanted))
      .map((index) => [key(index), index]);
    if (how !== "name") {
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return how === "worst" ? a - b : b - a;
      });
    }
    order = keyed.map(([, index]) => index);
    for (const [value, index] of keyed) {
      const button = cards.get(index).firstChild;
      const number = value === null || how === "name" ? "" : value.toFixed(3);
      button.querySelector(".name span").textContent = number;
      button.setAttribute("aria-label", `${data.ids[index]}${number && `, ${number}`}, enlarge`);
    }
    list.replaceChildren(...order.map((index) => cards.get(index)));
    find("gallery-words").textContent =
      `${order.length} of ${data.ids.length} images, IoU of ${data.methods[method]}`;
  };
  const redo = () => {
    list.style.setProperty("--tiles", shown().length + (hasTruth ? 2 : 1));
    const near = [...filled];
    filled.clear();
    near.forEach(fill);
  };
  const first = [...cards.keys()][0];
  const hasTruth = first !== undefined && Boolean(encoded(first)[1]);
  for (const id of ["sort-method", "sort-order"]) find(id).addEventListener("change", arrange);
  find("find").addEventListener("input", arrange);
  find("plain").addEventListener("change", (event) => {
    document.body.classList.toggle("plain", event.target.checked);
  });
  boxes.forEach((box) => box.addEventListener("change", redo));
  redo();
  arrange();
})();
