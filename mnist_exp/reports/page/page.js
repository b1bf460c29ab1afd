"use strict";
// What the reader has chosen; it stays when the page is updated while runs go on.
const chosen = {hidden: new Set(), splits: null, first: null, arm: null, sorted: {}, pair: null, seed: "", boxes: {}};
const theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
let specs = JSON.parse(document.getElementById("specs").textContent);
const views = {};
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// ---- figures

function formatTooltip(value, sanitize) {
  const rows = Object.entries(value).filter(([, text]) => !/^(NaN|undefined|null)/.test(text)); // curves that end before
  const [first, ...rest] = rows;
  if (first && first[0] === "epoch" && !("arm" in value)) { // all curves at one epoch: best first
    const number = text => parseFloat(text.replace(/[,%]/g, ""));
    rest.sort((a, b) => number(a[1]) - number(b[1]));
  }
  const cells = [first, ...rest].filter(Boolean).map(([key, text]) => `<tr><td class="key">${sanitize(key)}</td><td class="value">${sanitize(text)}</td></tr>`);
  return `<table>${cells.join("")}</table>`;
}

function signals() {
  const labels = all(".switch [data-arm]").map(button => button.dataset.arm);
  return {shown: labels.length ? labels.filter(label => !chosen.hidden.has(label)) : null, splits: chosen.splits, first: chosen.first, arm: chosen.arm};
}

function apply(names = Object.keys(views)) {
  for (const name of names) {
    const values = {...signals(), ...(chosen.boxes[name] || {box_x: null, box_y: null})};
    const own = (specs[name].params || []).find(param => param.name === "shown")?.value || [];
    if (!own.some(label => values.shown?.includes(label))) values.shown = null; // an empty figure has no scales
    const known = (specs[name].params || []).map(param => param.name).filter(param => param in values && (values[param] !== null || param.startsWith("box_")));
    for (const param of known) views[name].signal(param, values[param]);
    if (specs[name].usermeta && shownSeed[name] !== chosen.seed) {
      shownSeed[name] = chosen.seed;
      views[name].data("curves", points(name));
    }
    if (known.length) views[name].runAsync();
  }
}

// ---- curves of single runs, and the part of a figure that the reader has chosen

const shownSeed = {};
const singleRuns = name => specs[name]?.usermeta?.single_runs || [];

function points(name) { // the means, or the runs with the chosen seed
  if (chosen.seed === "") return structuredClone(specs[name].data.values);
  return singleRuns(name).filter(run => String(run.seed) === chosen.seed).flatMap(run => Object.entries(run.splits).flatMap(([split, values]) =>
    values.map((value, place) => ({arm: run.arm, key: split + run.place, split, epoch: run.epochs[place], mean: value, low: value, high: value, runs: 1})).filter(point => point.mean !== null)));
}

function listSeeds() { // of the arms that are shown
  const select = document.getElementById("seed");
  if (!select) return;
  const runs = singleRuns("curves_error").filter(run => !chosen.hidden.has(run.arm));
  const seeds = new Map(runs.map(run => [String(run.seed), ""]));
  for (const run of runs) if (run.status !== "completed") seeds.set(String(run.seed), ` (${run.status})`);
  const order = [...seeds.keys()].sort((a, b) => a - b);
  if (!seeds.has(chosen.seed)) chosen.seed = "";
  select.replaceChildren(new Option("mean over seeds", ""), ...order.map(seed => new Option(`seed ${seed}${seeds.get(seed)}`, seed)));
  select.value = chosen.seed;
}

const box = {}; // that is being drawn: the figure, where it began, and its element

function within(name, event) { // the pointer in the figure's own coordinates, at most at its edge
  const svg = document.querySelector(`#plot-${name} svg`).getBoundingClientRect(), [x, y] = views[name].origin();
  return [Math.min(Math.max(event.clientX - svg.left - x, 0), views[name].signal("width")), Math.min(Math.max(event.clientY - svg.top - y, 0), views[name].signal("height"))];
}

document.addEventListener("pointerdown", event => {
  const plot = event.target.closest?.(".plot"), name = plot?.id.slice(5);
  if (event.button !== 0 || event.pointerType === "touch" || !singleRuns(name).length || !views[name]) return;
  event.preventDefault(); // no text is selected
  Object.assign(box, {name, plot, from: within(name, event), element: document.createElement("div")});
  box.element.className = "box";
});

document.addEventListener("pointermove", event => {
  if (!box.name) return;
  const [x, y] = within(box.name, event), [left, top] = box.from, [dx, dy] = views[box.name].origin();
  const svg = box.plot.querySelector("svg").getBoundingClientRect(), place = box.plot.getBoundingClientRect();
  Object.assign(box.element.style, {left: `${Math.min(x, left) + dx + svg.left - place.left}px`, top: `${Math.min(y, top) + dy + svg.top - place.top}px`, width: `${Math.abs(x - left)}px`, height: `${Math.abs(y - top)}px`});
  if (!box.element.isConnected) box.plot.append(box.element);
});

document.addEventListener("pointerup", event => {
  if (!box.name) return;
  const {name, from} = box, to = within(name, event);
  box.element.remove();
  box.name = null;
  if (Math.abs(to[0] - from[0]) < 8 || Math.abs(to[1] - from[1]) < 8) return; // a click
  const ends = (axis, place) => [from[place], to[place]].map(pixel => views[name].scale(axis).invert(pixel)).sort((a, b) => a - b);
  chosen.boxes[name] = {box_x: ends("x", 0), box_y: ends("y", 1)};
  restore();
  apply([name]);
});

function whole(name) {
  delete chosen.boxes[name];
  restore();
  apply([name]);
}

document.addEventListener("dblclick", event => {
  const name = event.target.closest?.(".plot")?.id.slice(5);
  if (name in chosen.boxes) whole(name);
});

async function draw(names) {
  await Promise.all(names.map(async name => {
    const place = document.getElementById(`plot-${name}`);
    if (!place) return;
    place.style.minHeight = `${place.offsetHeight}px`; // what is below does not move
    const made = await vegaEmbed(place, specs[name], {actions: false, renderer: "svg", tooltip: {theme, formatTooltip}});
    place.style.minHeight = "";
    views[name] = made.view;
    shownSeed[name] = "";
  }));
  apply(names.filter(name => views[name]));
}

// ---- what the reader chooses

function restore() { // the state of all controls, after they were made or replaced
  for (const button of all(".switch [data-arm]")) button.setAttribute("aria-pressed", !chosen.hidden.has(button.dataset.arm));
  for (const box of all("[data-split]")) if (chosen.splits !== null) box.checked = chosen.splits.includes(box.dataset.split);
  const zoom = document.getElementById("first");
  if (zoom && chosen.first !== null) zoom.value = chosen.first;
  if (zoom) document.getElementById("first-shown").textContent = zoom.value;
  listSeeds();
  for (const button of all("[data-whole]")) button.hidden = !(button.dataset.whole in chosen.boxes);
  const confused = document.getElementById("confused");
  if (confused && chosen.arm !== null) confused.value = chosen.arm;
  for (const [table, {column, down}] of Object.entries(chosen.sorted)) sort(document.getElementById(table), column, down);
  for (const select of all("[data-side]")) if (chosen.pair) select.value = chosen.pair[select.dataset.side];
  sideBySide();
  all(".scroll").forEach(markScroll);
}

function sort(table, column, down) {
  if (!table || column >= table.tHead.rows[0].cells.length) return;
  chosen.sorted[table.id] = {column, down};
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach(other => other.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.key;
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.every(row => key(row) === "" || !isNaN(key(row)));
  const order = (a, b) => numeric ? a - b : String(a).localeCompare(b, "en", {numeric: true});
  rows.sort((a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : (down ? -1 : 1) * order(key(a), key(b)));
  table.tBodies[0].append(...rows);
}

function sideBySide() { // the rows of two arms, the settings that differ between these two only
  const table = document.getElementById("table-two"), source = document.getElementById("table-differs");
  if (!table || !source) return;
  const [first, second] = all("[data-side]").map(select => source.tBodies[0].rows[select.value]);
  const titles = [...source.tHead.rows[0].cells].map(cell => cell.textContent);
  table.tHead.rows[0].replaceChildren(...["setting", first.cells[0].textContent, second.cells[0].textContent].map(text => {
    const head = document.createElement("th");
    head.textContent = text;
    return head;
  }));
  const rows = titles.map((title, place) => [title, first.cells[place].textContent, second.cells[place].textContent]).slice(1);
  table.tBodies[0].replaceChildren(...rows.filter(([, one, other]) => one !== other).map(texts => {
    const row = document.createElement("tr");
    for (const text of texts) row.insertCell().textContent = text;
    return row;
  }));
}

function markScroll(scroll) {
  scroll.parentElement.toggleAttribute("data-more", scroll.parentElement.classList.contains("scrolls") && scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 4);
}

document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const labels = all(".switch [data-arm]").map(other => other.dataset.arm);
  if (button.dataset.arm !== undefined) {
    if (!chosen.hidden.delete(button.dataset.arm)) chosen.hidden.add(button.dataset.arm);
    if (labels.every(label => chosen.hidden.has(label))) chosen.hidden.clear();
  } else if (button.dataset.only !== undefined) {
    chosen.hidden = new Set(labels.filter(label => label !== button.dataset.only));
  } else if (button.id === "show-all") {
    chosen.hidden.clear();
  } else if (button.dataset.whole) {
    whole(button.dataset.whole);
    return void document.querySelector(`[data-png="${button.dataset.whole}"]`).focus();
  } else if (button.dataset.png) {
    return void savePng(button.dataset.png);
  } else if (button.dataset.csv) {
    return void save(`${button.dataset.csv}.csv`, `data:text/csv;charset=utf-8,${encodeURIComponent(csv(button.dataset.csv))}`);
  } else {
    const head = button.closest("th");
    return void (head && sort(head.closest("table"), head.cellIndex, head.getAttribute("aria-sort") !== "descending"));
  }
  restore();
  apply();
});

document.addEventListener("input", event => {
  const input = event.target;
  if (input.dataset.split) chosen.splits = all("[data-split]").filter(box => box.checked).map(box => box.dataset.split);
  else if (input.id === "first") [chosen.first, chosen.boxes] = [Number(input.value), {}];
  else if (input.id === "seed") chosen.seed = input.value;
  else if (input.id === "confused") chosen.arm = input.value;
  else if (input.dataset.side) chosen.pair = Object.fromEntries(all("[data-side]").map(select => [select.dataset.side, select.value]));
  else return;
  restore();
  apply();
});
document.addEventListener("scroll", event => event.target.classList?.contains("scroll") && markScroll(event.target), true);
document.addEventListener("toggle", () => all(".scroll").forEach(markScroll), true);
addEventListener("resize", () => all(".scroll").forEach(markScroll));
addEventListener("beforeprint", () => all("details").forEach(closed => { closed.open = true; }));

// ---- files

function save(name, address) {
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
}

async function savePng(name) { // on white, with its title and the legend that the page does not need
  const spec = structuredClone(specs[name]);
  const walk = node => {
    if (!node || typeof node !== "object") return;
    if (node.legend === null && node.field === "arm") node.legend = {symbolType: "stroke", symbolSize: 500, symbolStrokeWidth: 2, symbolOpacity: 1};
    else if (node.legend === null && node.field === "front") delete node.legend;
    for (const [key, value] of Object.entries(node)) value === "currentColor" ? node[key] = "#1c1e21" : walk(value);
  };
  walk(spec);
  const values = {...signals(), ...chosen.boxes[name]};
  if (spec.usermeta) spec.data.values = points(name);
  for (const param of spec.params || []) if (param.name in values && values[param.name] !== null) param.value = values[param.name];
  Object.assign(spec, {width: Math.max(640, document.getElementById(`plot-${name}`).offsetWidth), background: "white", padding: 12});
  spec.title = {text: document.querySelector(`[data-figure="${name}"] h3`).textContent, anchor: "start"};
  const made = await vegaEmbed(document.createElement("div"), spec, {actions: false, renderer: "svg"});
  save(`${name}.png`, await made.view.toImageURL("png", 2));
  made.finalize();
}

function csv(name) { // all data of the figure; the column layer tells its parts from one another
  const parts = [];
  const walk = node => {
    if (node?.data?.values) parts.push(node.usermeta && chosen.seed !== "" ? points(name) : node.data.values);
    for (const layer of node?.layer || []) walk(layer);
  };
  walk(specs[name]);
  const rows = parts.flatMap((values, place) => values.map(value => parts.length > 1 ? {layer: place + 1, ...value} : value));
  const heads = [...new Set(rows.flatMap(Object.keys))];
  const cell = value => {
    const text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
    const safe = typeof value === "string" && /^[=+@\t\r-]/.test(text) && isNaN(text) ? `'${text}` : text; // no formula
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [heads, ...rows.map(row => heads.map(head => row[head]))].map(line => line.map(cell).join(",")).join("\n") + "\n";
}

// ---- live: the same page again, with what has changed

const parts = (root = document) => new Map(all("header, section", root).map(part => [part.id, part]));
const written = new Map([...parts()].map(([id, part]) => [id, part.outerHTML])); // before anything is drawn

async function update() {
  const answer = await fetch(`live?version=${document.body.dataset.live}`);
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const news = await answer.json();
  document.getElementById("live").innerHTML = news.jobs;
  if (news.body === undefined) return;
  const fresh = parts(new DOMParser().parseFromString(news.body, "text/html")), old = parts();
  const anchor = [...old.values()].find(part => part.getBoundingClientRect().bottom > 0), top = anchor?.getBoundingClientRect().top;
  const place = details => `${details.closest("header, section").id} ${all("details", details.closest("header, section")).indexOf(details)}`;
  const opened = new Map(all("details").map(details => [place(details), details.open]));
  const focused = document.activeElement?.id;
  const drawn = new Map(all(".plot").map(plot => [plot.id, plot]));
  let before = null; // the part above
  for (const [id, part] of fresh) {
    const html = part.outerHTML, present = old.get(id);
    if (present && written.get(id) === html) {
      before = present;
      continue;
    }
    written.set(id, html);
    for (const plot of all(".plot", part)) if (drawn.has(plot.id)) plot.replaceWith(drawn.get(plot.id));
    if (present) present.replaceWith(part);
    else if (before) before.after(part);
    else document.querySelector("main").prepend(part);
    before = part;
  }
  for (const [id, part] of old) if (!fresh.has(id)) part.remove();
  for (const details of all("details")) if (opened.has(place(details))) details.open = opened.get(place(details));
  const stale = Object.keys(news.specs).filter(name => !views[name] || JSON.stringify(news.specs[name]) !== JSON.stringify(specs[name]));
  for (const name of Object.keys(views)) if (!document.getElementById(`plot-${name}`)) delete views[name];
  specs = news.specs;
  document.title = document.querySelector("h1").textContent;
  document.body.dataset.live = news.version;
  restore();
  await draw(stale);
  if (focused) document.getElementById(focused)?.focus({preventScroll: true});
  if (anchor) scrollBy(0, (document.getElementById(anchor.id)?.getBoundingClientRect().top ?? top) - top);
}

async function follow() {
  try {
    await update();
  } catch (error) {
    document.getElementById("live").textContent = `mnist-report --serve has ended or does not answer (${error.message}); this is the last state.`;
  }
  setTimeout(follow, 2000);
}

restore();
draw(Object.keys(specs)).then(() => {
  document.documentElement.dataset.drawn = "yes";
  if (document.body.dataset.live !== undefined) follow();
});
