// Files go up one by one, the run is asked for, and its state is read until it has ended.
// Text is only ever set as text: names of files may hold anything.
"use strict";

const $ = (id) => document.getElementById(id);
const maxBytes = Number(document.body.dataset.maxBytes);
const maxFiles = Number(document.body.dataset.maxFiles);
const KIND_WORDS = {
  overlay: "Overlay", photograph: "Photograph", mask: "Mask", labels: "Parts", cutout: "Cut-out",
};

let session = null; // its address below this page
let files = []; // {number, name, size} and, of those that were refused, {error}
let running = false;
let found = null; // what was found, and the order it is shown in
let order = [];
let shown = 0; // position in the order of what the viewer shows
let kind = "overlay";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: see whether it still runs, and reload the page.");
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({ error: "the server made an error." }));
  if (!answer.ok) throw Object.assign(new Error(body.error), { status: answer.status });
  return body;
}

function say(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 1)} MB`;
}

// ---------------------------------------------------------------- what is dropped

async function opened() {
  if (!session) session = "sessions/" + (await ask("sessions", { method: "POST" })).id;
  return session;
}

let queue = Promise.resolve();

function drop(list) {
  const dropped = [...list];
  queue = queue.then(() => upload(dropped)).catch((error) => say("failure", error.message));
}

async function upload(dropped) {
  say("failure", "");
  for (const file of dropped) {
    if (files.filter((other) => !other.error).length >= maxFiles) {
      say("failure", `${maxFiles} files are the most that this page takes: the others were left out.`);
      break;
    }
    const entry = { name: file.name, size: file.size, going: true };
    files.push(entry);
    list();
    try {
      if (file.size > maxBytes) {
        throw new Error(`${file.name} has ${megabytes(file.size)}, and ${megabytes(maxBytes)} are the `
          + "most that this page takes: reduce it first.");
      }
      const path = `${await opened()}/files?name=${encodeURIComponent(file.name)}`;
      Object.assign(entry, await ask(path, { method: "POST", body: file }));
    } catch (error) {
      entry.error = error.message;
    }
    entry.going = false;
    list();
  }
}

function list() {
  $("list").replaceChildren(...files.map((entry) => {
    const words = entry.error
      ? [make("span", {}, entry.error)]
      : [make("span", {}, entry.name), make("small", {}, entry.going ? "…" : megabytes(entry.size))];
    const remove = make("button", { type: "button", disabled: running || Boolean(entry.going) }, "✕");
    remove.setAttribute("aria-label", `Remove ${entry.name}`);
    remove.addEventListener("click", async () => {
      files = files.filter((other) => other !== entry);
      list();
      if (entry.number) {
        await ask(`${session}/files/${entry.number}`, { method: "DELETE" })
          .catch((error) => say("failure", error.message));
      }
    });
    return make("li", { className: entry.error ? "bad" : "" }, ...words, remove);
  }));
  settle();
}

function settle() {
  const ready = files.some((entry) => entry.number) && !files.some((entry) => entry.going);
  $("start").disabled = running || !ready;
  const chosen = $("method").selectedOptions[0];
  $("words").textContent = chosen.dataset.words
    + (chosen.value === "auto" ? " With a K, auto takes deepcut." : "");
  $("clusters").disabled = running || !chosen.dataset.hint;
  $("clusters").placeholder = chosen.value === "auto" ? "" : chosen.dataset.hint;
  $("backbone").disabled = running || !chosen.dataset.patches;
  $("method").disabled = $("files").disabled = $("kind").disabled = running;
}

const thing = () => document.querySelector("[name=kind]:checked").value;

// ---------------------------------------------------------------- the run

async function start(refit = null) {
  const clusters = $("clusters").disabled ? "" : $("clusters").value;
  const asked = [$("clusters"), ...(thing() === "parts" ? [$("parts")] : [])];
  if (!asked.every((field) => field.reportValidity())) return;
  say("failure", "");
  $("output").hidden = true; // and shown again at the end, also with what an earlier run found
  const settings = {
    kind: thing(),
    parts: Number($("parts").value),
    method: $("method").value,
    clusters: clusters === "" ? null : Number(clusters),
    backbone: $("backbone").disabled ? "auto" : $("backbone").value,
    ...refit,
  };
  try {
    busy(true, "Starting");
    let state = await ask(`${session}/run`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(settings),
    });
    while (!["done", "failed", "stopped"].includes(state.phase)) {
      tell(state);
      await new Promise((done) => setTimeout(done, 300));
      state = await ask(session);
    }
    if (state.phase === "failed") throw new Error(state.message);
    if (state.phase === "done") await look(state.number);
  } catch (error) {
    say("failure", error.message);
  }
  busy(false);
  $("output").hidden = !found;
}

function busy(yes, words = "") {
  running = yes;
  $("busy").hidden = !yes;
  $("phase").textContent = words;
  $("progress").removeAttribute("value");
  $("stop").disabled = false;
  list();
  tally();
}

function tell(state) {
  const words = {
    waiting: `Waiting: ${count(state.before, "run")} first`,
    loading: "Loading the backbone",
    fitting: `Fitting: ${state.done} of ${state.total} images read`,
    segmenting: state.done ? `${state.done} of ${state.total} images` : "Segmenting; the first image takes longest",
  };
  $("phase").textContent = words[state.phase] || "";
  if (state.done) {
    $("progress").max = state.total;
    $("progress").value = state.done;
  } else {
    $("progress").removeAttribute("value");
  }
}

// ---------------------------------------------------------------- what was found

function numbers(image) {
  const parts = [count(image.objects.length, "object"), `${Math.round(100 * image.coverage)} % of the image`];
  if (image.labels > 1) parts.push(count(image.labels, "part"));
  parts.push(`confidence ${image.confidence.toFixed(2)}`);
  return parts.join(" · ");
}

function pictureOf(index, which, small) {
  return `${session}/runs/${found.number}/pictures/${index}/${which}${small ? "?small" : ""}`;
}

function save(index, which) {
  const href = `${pictureOf(index, which, false)}?file`;
  return make("a", { href, className: "save", download: "" }, `Download ${KIND_WORDS[which].toLowerCase()}`);
}

async function look(number) {
  show(await ask(`${session}/runs/${number}/results`));
}

function choices() {
  const { number, kept, method, settings, images } = found;
  const options = [...$("runs").options];
  if (!options.some((option) => Number(option.value) === number)) {
    const k = settings.clusters ? `, K=${settings.clusters}` : "";
    const words = `${number}: ${method}${k}, ${count(images.length, "image")}`;
    $("runs").prepend(make("option", { value: number }, words));
  }
  for (const option of options.filter((one) => !kept.includes(Number(one.value)))) {
    $("dropped").textContent = ` Run ${option.value} was deleted.`;
    option.remove();
  }
  $("runs").value = number;
}

function show(results) {
  found = results;
  choices();
  const done = found.images.filter((image) => !image.error);
  const failed = found.images.length - done.length;
  const objects = done.reduce((sum, image) => sum + image.objects.length, 0);
  const check = done.filter((image) => image.check).length;
  $("headline").textContent = `${count(done.length, "image")}, ${count(objects, "object")}`
    + (check ? `, ${check} to check` : done.length ? ", none looks broken" : "") + (failed ? `, ${failed} failed` : "");
  const compiling = found.compile_seconds >= 0.05 ? `, and ${found.compile_seconds.toFixed(1)} s compiling` : "";
  $("how").textContent = [
    found.message,
    `${found.method}: ${found.seconds.toFixed(1)} s${compiling}.`,
    found.fitted ? "The zip holds the fitted model." : "",
  ].filter(Boolean).join(" ");
  $("download").href = `${session}/runs/${found.number}/unseg_jax.zip`;
  $("download").hidden = !done.length;
  $("output").hidden = false;
  sort();
  $("headline").focus({ preventScroll: true });
}

function sort() {
  // What failed comes first, however many images there are.
  const unsure = $("order").value === "unsure";
  const key = (index) => {
    const image = found.images[index];
    return image.error ? -1 : unsure ? image.confidence : 0;
  };
  order = found.images.map((_, index) => index).sort((a, b) => key(a) - key(b) || a - b);
  $("cards").replaceChildren(...order.map((index, position) => card(found.images[index], index, position)));
  tally();
}

const decidable = () => [...$("cards").querySelectorAll("[data-name]")];
const desk = reviewDesk((one) => {
  desk.show(one);
  tally();
});

function tally() {
  const cards = decidable();
  $("tally").value = desk.tally(cards);
  $("refit").disabled = running || !desk.exported(cards).images.length;
}

function card(image, index, position) {
  if (image.error) {
    return make("li", { className: "bad" }, make("span", {}, image.error));
  }
  const why = image.check;
  const words = make("span", { className: "numbers" });
  if (why) words.append(make("span", { className: "tag" }, `check: ${why}`), " · ");
  words.append(numbers(image));
  const button = make("button", { type: "button", className: "open" },
    make("span", { className: "markable" }, make("img",
      { src: pictureOf(index, "overlay", true), alt: `Overlay of ${image.file}`, loading: "lazy" })),
    make("span", { className: "name" }, image.file), words);
  button.addEventListener("click", () => open(position));
  const choices = ["keep", "reject"].map((verdict) => {
    const choice = make("button", { type: "button" }, verdict === "keep" ? "Keep" : "Reject");
    choice.dataset.decision = verdict;
    return choice;
  });
  const reasons = make("select", { ariaLabel: "Why" }, new Option("why?", ""));
  reasons.dataset.reason = "";
  const one = make("li", { className: why ? "check" : "" }, button, save(index, "cutout"),
    make("p", { className: "decide" }, ...choices, reasons));
  Object.assign(one.dataset, {
    name: image.name, file: image.file, size: JSON.stringify(image.size), of: found.number,
  });
  desk.recall(one);
  desk.attach(one);
  return one;
}

// ---------------------------------------------------------------- the viewer

function open(position) {
  shown = position;
  const index = order[shown];
  const image = found.images[index];
  const kinds = Object.keys(KIND_WORDS).filter((name) => name !== "labels" || image.labels > 1);
  if (!kinds.includes(kind)) kind = "overlay";
  $("viewer-title").textContent = image.file;
  $("kinds").replaceChildren(...kinds.map((name) => {
    const button = make("button", { type: "button" }, KIND_WORDS[name]);
    button.setAttribute("aria-pressed", String(name === kind));
    button.addEventListener("click", () => { kind = name; open(shown); });
    return button;
  }), save(index, kind));
  $("kinds").querySelector("[aria-pressed=true]").focus();
  $("large").src = pictureOf(index, kind, false);
  $("photograph").src = pictureOf(index, "photograph", false);
  $("compare").hidden = kind === "photograph";
  slide();
  $("large").alt = `${KIND_WORDS[kind]} of ${image.file}`;
  const [height, width] = image.size;
  $("viewer-words").textContent = [`${numbers(image)} · ${width} × ${height} pixels.`, ...image.notes].join(" ");
  curve(image.losses);
  $("objects").hidden = !image.objects.length;
  $("objects").tBodies[0].replaceChildren(...image.objects.map((item, number) => make("tr", {},
    ...[number + 1, item.box.join(", "), item.area, item.score.toFixed(2), item.label]
      .map((text) => make("td", {}, String(text))))));
  if (!$("viewer").open) $("viewer").showModal();
}

function slide() {
  $("photograph").style.clipPath = `inset(0 0 0 ${$("compare").hidden ? 100 : $("slide").value}%)`;
}

function move(step) {
  for (let i = 1; i <= order.length; i += 1) {
    const position = (shown + step * i + i * order.length) % order.length;
    if (!found.images[order[position]].error) {
      open(position);
      return;
    }
  }
}

function curve(losses) {
  const values = losses.filter(Number.isFinite);
  $("loss").hidden = values.length < 2;
  if (values.length < 2) return;
  const svg = $("loss").querySelector("svg");
  const low = Math.min(...values);
  const high = Math.max(...values);
  const [left, right, top, bottom] = [52, 396, 8, 108];
  const x = (i) => left + ((right - left) * i) / (values.length - 1);
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low || 1);
  svg.setAttribute("aria-label", `Loss from ${values[0].toPrecision(3)} to ${values.at(-1).toPrecision(3)}`);
  svg.replaceChildren(
    svgElement("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }),
    svgElement("path", { class: "curve", d: "M" + values.map((value, i) => `${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("L") }),
    svgElement("text", { x: left - 6, y: top + 6, "text-anchor": "end" }, high.toPrecision(3)),
    svgElement("text", { x: left - 6, y: bottom, "text-anchor": "end" }, low.toPrecision(3)),
    svgElement("text", { x: left, y: bottom + 16 }, "epoch 0"),
    svgElement("text", { x: right, y: bottom + 16, "text-anchor": "end" }, String(values.length - 1)),
  );
  $("loss").querySelector("figcaption").textContent =
    `Loss before each of ${values.length} epochs: ${values[0].toPrecision(3)} to ${values.at(-1).toPrecision(3)}`;
}

// ---------------------------------------------------------------- events

$("files").addEventListener("change", () => {
  drop($("files").files);
  $("files").value = "";
});
for (const name of ["dragenter", "dragover"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) {
  $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
}
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  if (!running) drop(event.dataTransfer.files);
});
$("method").addEventListener("change", settle);
$("start").addEventListener("click", () => start());
$("refit").addEventListener("click", () => start({
  ...found.settings, refit: found.number, decisions: desk.exported(decidable()),
}));
addEventListener("resize", () => decidable().forEach(desk.show));
$("stop").addEventListener("click", () => {
  $("stop").disabled = true;
  $("phase").textContent = "Stopping after this image";
  ask(`${session}/stop`, { method: "POST" }).catch(() => {});
});
$("runs").addEventListener("change", () => {
  look($("runs").value).catch((error) => say("failure", error.message));
});
$("order").addEventListener("change", sort);
$("close").addEventListener("click", () => $("viewer").close());
$("previous").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
$("slide").addEventListener("input", slide);
$("viewer").addEventListener("keydown", (event) => {
  if (event.target === $("slide")) return;
  if (event.key === "ArrowLeft") move(-1);
  if (event.key === "ArrowRight") move(1);
});
$("viewer").addEventListener("click", (event) => {
  if (event.target === $("viewer")) $("viewer").close();
});

// An open page says so; a closed one takes its pictures with it.
setInterval(() => {
  if (session && !running) {
    ask(session).catch((error) => {
      if (error.status === 404) say("gone", error.message);
    });
  }
}, 30000);
addEventListener("pagehide", () => {
  if (session) navigator.sendBeacon(`${session}/close`);
});
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
settle();
