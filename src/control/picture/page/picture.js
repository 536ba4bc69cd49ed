// The page: asks for a picture once a second, and shows it as a graph, as figures and as tables.

import { Graph } from "./graph.js";
import { Traffic } from "./traffic.js";

const EVERY_MS = 1000;
const $ = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
const wanted = parameters.has("clients") ? `?clients=${encodeURIComponent(parameters.get("clients"))}` : "";
if (parameters.get("embed") === "1") document.body.classList.add("embed");

const count = (number) => number.toLocaleString("en");
const rate = (number) => (number === null ? "–" : number < 9.95 ? String(Math.round(number * 10) / 10) : count(Math.round(number)));
const percent = (number) => (number === null ? "unknown" : `${number.toFixed(1)} %`);
const megabytes = (number) => (number === null ? "unknown" : `${count(Math.round(number))} MB`);

const graph = new Graph($("base"), $("lights"));
const traffic = new Traffic();
let shown = null;
let selection = null;
let lastDetail = null;
// For whoever measures or drives the page.
globalThis.picture = { graph };

// ---- once a second

async function look() {
  try {
    const answer = await fetch(`api/picture${wanted}`, { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(await answer.text());
    shown = traffic.next(await answer.json());
    $("trouble").hidden = true;
    graph.update(shown);
    figures();
    tables();
    if (selection) await panel();
  } catch (error) {
    $("trouble").textContent = `The node does not answer: ${error.message || error.name}. What you see is old.`;
    $("trouble").hidden = false;
  }
}

async function watch() {
  for (;;) {
    const begun = performance.now();
    // A page that nobody sees asks for nothing.
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, Math.max(100, EVERY_MS - (performance.now() - begun))));
  }
}

function figures() {
  const up = shown.nodes.filter((node) => !node.trouble).length;
  $("nodes").textContent = up === shown.nodes.length ? count(up) : `${count(up)} of ${count(shown.nodes.length)}`;
  $("clients").textContent = count(shown.clients);
  $("in").textContent = rate(shown.in);
  $("out").textContent = rate(shown.out);
  $("showing").textContent = shown.shown < shown.clients ? `showing ${count(shown.shown)} of ${count(shown.clients)} clients` : "";
}

// ---- tables

/** Fills a table's body; rows are lists of [text, attributes]. Only what differs is touched, so that a reader is not disturbed. */
function fill(table, rows) {
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, at) => {
    const line = body.rows[at] ?? body.insertRow();
    row.forEach(([text, { small = "", type = "" } = {}], column) => {
      let cell = line.cells[column];
      if (!cell) {
        cell = document.createElement(column === 0 ? "th" : "td");
        if (column === 0) cell.scope = "row";
        else cell.dataset.label = labels[column];
        line.append(cell);
      }
      const key = `${text}\n${small}\n${type}`;
      if (cell.dataset.key === key) return;
      cell.dataset.key = key;
      cell.className = type;
      cell.replaceChildren(text);
      if (small) {
        const second = document.createElement("small");
        second.textContent = small;
        cell.append(second);
      }
    });
  });
}

const lanesUp = (up, all) => [`${count(up)} of ${count(all)}`, { type: up < all ? "bad" : "" }];

function tables() {
  fill(
    $("node-table"),
    shown.nodes.map((node) => {
      if (node.trouble) return [[node.name, { small: `unreachable: ${node.trouble}`, type: "bad" }], ["–"], ["–"], ["–"], ["–"], ["–"], ["–"]];
      const up = node.lanes.filter((lane) => lane.state === "up").length;
      const own = node.is_self ? `${node.url} · this node` : node.url;
      return [[node.name, { small: own }], [count(node.clients)], [rate(node.in)], [rate(node.out)], [percent(node.cpu)], [megabytes(node.memory)], lanesUp(up, node.lanes.length)];
    }),
  );
  fill(
    $("app-table"),
    shown.apps.map((app) => [[app.url], [app.kind === "observer" ? `${app.upstream} (observer)` : app.upstream, { type: "text" }], [count(app.clients)], [rate(app.in)], [rate(app.out)], lanesUp(app.up, app.lanes)]),
  );
  if (!$("lanes").open) return;
  fill(
    $("lane-table"),
    shown.nodes.flatMap((node) =>
      node.lanes.map((lane) => [
        [`${lane.shard}.${lane.lane}`],
        [node.name, { type: "text" }],
        [node.app_servers[lane.app_server].url, { type: "text" }],
        [lane.state, { type: `text state-${lane.state}` }],
        [count(lane.clients)],
        [count(lane.waiting)],
        // Half a minute of silence is the default at which a lane is replaced.
        [count(lane.in_flight ?? 0), lane.owed_ms >= 5000 ? { small: `none acknowledged for ${count(Math.round(lane.owed_ms / 1000))} s`, type: "bad" } : {}],
        [count(lane.replays ?? 0)],
        [rate(lane.in)],
        [rate(lane.out)],
      ]),
    ),
  );
}
$("lanes").addEventListener("toggle", () => shown && tables());

// ---- what is selected

function choose(next) {
  const isOther = next?.[1] !== selection?.[1];
  selection = next;
  graph.select(next?.[1] ?? null);
  if (!next) {
    $("panel").hidden = true;
    graph.leave(0);
    return;
  }
  if (isOther) {
    lastDetail = null;
    $("panel-body").replaceChildren(note("…"));
  }
  const wasHidden = $("panel").hidden;
  $("panel").hidden = false;
  $("panel-title").textContent = { client: "Client", node: "Node", app: "App server" }[next[0]];
  if (wasHidden) $("panel").focus({ preventScroll: true });
  // On a phone it lies over the lower part; beside it nothing would be left.
  const [over, all] = [$("panel").offsetWidth, stage.clientWidth];
  graph.leave(over < all / 2 ? over : 0);
  void panel();
}

async function panel() {
  const [kind, key] = selection;
  const body = $("panel-body");
  if (kind === "client") {
    const content = await client(key);
    // Another one was chosen meanwhile.
    if (selection?.[1] === key) body.replaceChildren(...content);
    return;
  }
  if (kind === "node") {
    const node = shown.nodes.find((node) => node.key === key);
    if (node) body.replaceChildren(...nodeDetail(node));
    return;
  }
  const app = shown.apps.find((app) => app.url === key);
  if (app) {
    body.replaceChildren(
      list([["url", app.url], ["upstream", app.upstream], ["clients", count(app.clients)], ["to it", `${rate(app.in)}/s`], ["from it", `${rate(app.out)}/s`], ["lanes up", `${count(app.up)} of ${count(app.lanes)}`]]),
    );
  }
}

function nodeDetail(node) {
  if (node.trouble) return [list([["name", node.name], ["asked at", node.admin]]), note(`Unreachable: ${node.trouble}`)];
  const lanes = node.links.map((link) => [link.upstream, `${count(link.up)} of ${count(link.lanes.length)} lanes up`]);
  return [
    list([
      ["name", node.name],
      ["clients connect to", node.url],
      ["admin", node.admin],
      ["clients", node.sample.length < node.clients ? `${count(node.clients)}, ${count(node.sample.length)} shown` : count(node.clients)],
      ["from clients", `${rate(node.in)}/s`],
      ["to clients", `${rate(node.out)}/s`],
      ["CPU", node.cpu === null ? "unknown" : `${percent(node.cpu)}; the machine ${percent(node.machine_cpu)}`],
      ["memory", megabytes(node.memory)],
    ]),
    heading("Upstreams"),
    list(lanes),
  ];
}

async function client(id) {
  const node = shown.nodes.find((node) => node.sample.some((client) => client.id === id)) ?? null;
  // One that is not in the sample may be at any node.
  const nodes = node ? [node] : shown.nodes.filter((node) => !node.trouble);
  for (const { id: nodeId, name } of nodes) {
    const answer = await fetch(`api/client?node=${nodeId}&id=${encodeURIComponent(id)}`, { signal: AbortSignal.timeout(5000) });
    if (answer.status === 404) continue;
    if (!answer.ok) return [note(await answer.text())];
    return clientDetail(await answer.json(), name);
  }
  return [list([["id", id]]), note("This client is gone.")];
}

function clientDetail(detail, nodeName) {
  const before = lastDetail?.id === detail.id ? lastDetail : null;
  const ms = before ? detail.at_ms - before.at_ms : 0;
  const each = (now, was) => (ms > 0 ? `${count(now)} (${rate((((now - was) >>> 0) * 1000) / ms)}/s)` : count(now));
  lastDetail = detail;
  const views = names(detail.view_models, detail.view_model_count);
  const parts = [
    list([
      ["id", detail.id, "mono"],
      ["node", nodeName],
      ["state", detail.state],
      ["address", detail.address],
      ["listener", detail.listener],
      ["transport", detail.transport],
      ["protocol", detail.protocol],
      ["user", detail.user ?? "not known"],
      ["user agent", detail.user_agent ?? "not known"],
      ["from it", each(detail.received, before?.received)],
      ["to it", each(detail.sent, before?.sent)],
      ["queued", `${count(detail.queued_bytes)} bytes`],
      ["view models", views || "none"],
    ]),
  ];
  for (const pin of detail.lanes) {
    parts.push(heading(`Lane ${pin.lane} to ${pin.upstream}`), list([["url", pin.url], ["groups", names(pin.groups, pin.group_count) || "none"]]));
  }
  return parts;
}

const names = (shown, all) => shown.join(", ") + (all > shown.length ? `, and ${count(all - shown.length)} more` : "");

function list(rows) {
  const dl = document.createElement("dl");
  for (const [name, value, type = ""] of rows) {
    const row = document.createElement("div");
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = name;
    dd.textContent = value;
    dd.className = type;
    dd.dataset.name = name;
    row.append(dt, dd);
    dl.append(row);
  }
  return dl;
}

function note(text) {
  const p = document.createElement("p");
  p.className = "note";
  p.textContent = text;
  return p;
}

function heading(text) {
  const h3 = document.createElement("h3");
  h3.textContent = text;
  return h3;
}

$("panel-close").addEventListener("click", () => {
  choose(null);
  $("lights").focus({ preventScroll: true });
});

// ---- finding

$("id").addEventListener("input", () => {
  const start = $("id").value.trim();
  const found = graph.match(start).length;
  $("found").textContent = start ? `${count(found)} shown` : "";
});
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const start = $("id").value.trim();
  const [first] = graph.match(start);
  if (first) choose(["client", first.id]);
  else if (/^[\w-]{22}$/.test(start)) choose(["client", start]);
  else $("found").textContent = "none shown: give the whole id";
});

// ---- pointer, touch, keyboard

const stage = $("lights");
const pointers = new Map();
let travelled = 0;

const place = (event) => {
  const { left, top } = stage.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
};

stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  if (pointers.size === 0) travelled = 0;
  pointers.set(event.pointerId, place(event));
});
stage.addEventListener("pointermove", (event) => {
  const from = pointers.get(event.pointerId);
  const to = place(event);
  if (!from) {
    stage.style.cursor = graph.pick(...to, 9) ? "pointer" : "";
    return;
  }
  const [byX, byY] = [to[0] - from[0], to[1] - from[1]];
  travelled += Math.abs(byX) + Math.abs(byY);
  if (pointers.size === 1) {
    if (travelled > 6) graph.move(byX, byY);
  } else {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
    graph.zoom(apart(to) / apart(from), other[0], other[1]);
  }
  pointers.set(event.pointerId, to);
});
const release = (event) => {
  const wasThere = pointers.delete(event.pointerId);
  if (!wasThere || event.type === "pointercancel" || pointers.size || travelled > 6) return;
  choose(graph.pick(...place(event), event.pointerType === "mouse" ? 9 : 24));
};
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", release);
stage.addEventListener("dblclick", () => graph.showAll());
stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    graph.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event));
  },
  { passive: false },
);

for (const button of document.querySelectorAll("#zoom button")) {
  button.addEventListener("click", () => ({ in: () => graph.zoom(1.4), out: () => graph.zoom(1 / 1.4), all: () => graph.showAll() })[button.dataset.zoom]());
}

stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = (by) => {
    const ids = [...graph.clients.keys()];
    if (!ids.length) return;
    const at = selection?.[0] === "client" ? ids.indexOf(selection[1]) : by > 0 ? -1 : 0;
    choose(["client", ids[(at + by + ids.length) % ids.length]]);
    stage.focus({ preventScroll: true });
  };
  const act = {
    ArrowLeft: () => graph.move(60, 0),
    ArrowRight: () => graph.move(-60, 0),
    ArrowUp: () => graph.move(0, 60),
    ArrowDown: () => graph.move(0, -60),
    "+": () => graph.zoom(1.25),
    "=": () => graph.zoom(1.25),
    "-": () => graph.zoom(0.8),
    0: () => graph.showAll(),
    n: () => step(1),
    p: () => step(-1),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && selection) $("panel-close").click();
});

void watch();
