// The demonstration: what runs, and buttons that stop and start it. The picture and the live pages are frames and live by themselves.

const EVERY_MS = 1000;
const byId = (id) => document.getElementById(id);
const count = (number) => Math.round(number).toLocaleString("en");
const rate = (number) => (number < 9.95 ? String(Math.round(number * 10) / 10) : count(number));

let state = null;
// Parts with an order under way.
const ordered = new Set();

// ---- what there is to see ------------------------------------------------------------------------------------------

async function look() {
  try {
    const answer = await fetch("api/state", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    lost(false);
  } catch {
    lost(true);
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

function show(next) {
  const before = state;
  state = next;
  state.nodes.forEach((node, at) => showPart(byId(`node-${at + 1}`), node, nodeDetail(node, state.load.nodes[at])));
  showPart(byId("app"), state.app_server, [address(state.app_server.url)]);
  showLoad();
  showPicture();
  showLive();
  // Who waits for its next attempt need not.
  const isUp = (part) => part?.state === "running";
  const cameUp = isUp(state.app_server) && !isUp(before?.app_server);
  state.nodes.forEach((node, at) => {
    if (before && isUp(node) && (cameUp || !isUp(before.nodes[at]))) byId(`live-${at + 1}`).contentWindow.postMessage("retry", location.origin);
  });
}

const address = (url) => url.replace(/^http:\/\//, "");

function nodeDetail(node, load) {
  if (node.state !== "running" || !load.clients) return [address(node.url)];
  const time = load.p99 === null ? "" : `, p99 ${milliseconds(load.p99)} ms`;
  return [address(node.url), `${count(load.active)} clients${time}`];
}

const milliseconds = (ms) => (ms < 9.95 ? ms.toFixed(1) : count(ms));

function showPart(element, part, detail) {
  const [label, button] = [element.querySelector(".state"), element.querySelector("button")];
  element.dataset.state = part.state;
  say(label, part.state);
  const line = element.querySelector(".detail");
  const parts = part.trouble ? [part.trouble] : detail;
  while (line.children.length > parts.length) line.lastElementChild.remove();
  parts.forEach((text, at) => {
    if (at && !line.children[at]) line.append(" ");
    say(line.children[at] ?? line.appendChild(document.createElement("span")), text);
  });
  line.title = parts.join(" · ");
  const stops = part.state === "running" || part.state === "stopping";
  say(button, stops ? "Stop" : "Start");
  button.setAttribute("aria-label", `${button.textContent} ${element.querySelector("h2").textContent}`);
  // Not `disabled`, which would take the focus away.
  button.disabled = false;
  button.setAttribute("aria-disabled", String(ordered.has(element.id) || part.state === "starting" || part.state === "stopping"));
}

// Only what differs, so that a reader is not disturbed.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showLoad() {
  const { load } = state;
  const sum = (name) => load.nodes.reduce((sum, node) => sum + node[name], 0);
  const times = load.nodes.map((node) => node.p99).filter((time) => time !== null);
  say(byId("active"), load.clients ? `${count(sum("active"))} of ${count(load.clients)}` : count(sum("active")));
  say(byId("sent"), rate(sum("sent_rate")));
  say(byId("received"), rate(sum("received_rate")));
  say(byId("p99"), times.length ? milliseconds(Math.max(...times)) : "–");
  say(byId("total"), count(sum("received")));
  const wrong = ["missed", "duplicated", "reordered", "misdelivered", "errors"].reduce((all, name) => all + sum(name), 0);
  say(byId("wrong"), count(wrong));
  byId("wrong").classList.toggle("bad", wrong > 0);
  say(byId("lost"), count(sum("lost")));
  byId("load-stop").disabled = false;
  byId("load-stop").setAttribute("aria-disabled", String(!load.clients));
  say(byId("load-start"), load.clients ? "Change" : "Start");
  // Not under the visitor's hands.
  const isEdited = byId("load").contains(document.activeElement) || byId("load").dataset.edited;
  if (!isEdited) {
    if (load.clients) byId("clients").value = load.clients;
    byId("profile").value = load.profile;
  }
  if (load.trouble) notice(load.trouble);
}

// ---- frames --------------------------------------------------------------------------------------------------------

// Of the first node that runs: each shows both.
function showPicture() {
  const stage = byId("picture");
  const from = state.nodes.find((node) => node.state === "running")?.admin ?? "";
  if (stage.dataset.from === from) return;
  stage.dataset.from = from;
  // A new one and not a new address: that would become a step of the browser's history.
  stage.querySelector("iframe")?.remove();
  byId("no-picture").hidden = from !== "";
  say(byId("no-picture"), "Both nodes are stopped. Start one to see the live picture: it is served by the nodes themselves.");
  if (!from) return;
  const frame = document.createElement("iframe");
  frame.title = "Live picture: both nodes, the app server, their clients, and the messages between them";
  frame.src = `${from}/picture?embed=1`;
  stage.append(frame);
}

function showLive() {
  state.nodes.forEach((node, at) => {
    const frame = byId(`live-${at + 1}`);
    if (frame.src) return;
    const query = new URLSearchParams({ embed: "1", node: node.url, label: `Node ${at + 1}`, name: `Visitor ${at + 1}` });
    frame.src = `live?${query}`;
  });
}

// ---- orders --------------------------------------------------------------------------------------------------------

async function order(path) {
  notice("");
  const answer = await fetch(`api/${path}`, { method: "POST" }).catch(() => null);
  if (!answer) return lost(true);
  if (answer.ok) show(await answer.json());
  else notice(await answer.text());
}

for (const element of document.querySelectorAll(".part")) {
  const button = element.querySelector("button");
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    const verb = element.dataset.state === "running" ? "stop" : "start";
    ordered.add(element.id);
    button.setAttribute("aria-disabled", "true");
    say(element.querySelector(".state"), verb === "stop" ? "stopping" : "starting");
    element.dataset.state = verb === "stop" ? "stopping" : "starting";
    await order(`${element.dataset.path}/${verb}`);
    ordered.delete(element.id);
    await look();
  });
}

byId("load").addEventListener("input", () => (byId("load").dataset.edited = "yes"));
byId("load").addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = new URLSearchParams({ clients: byId("clients").value, profile: byId("profile").value });
  await order(`load?${query}`);
  delete byId("load").dataset.edited;
});
byId("load-stop").addEventListener("click", () => {
  if (byId("load-stop").getAttribute("aria-disabled") !== "true") void order("load/stop");
});

function notice(text) {
  byId("notice").hidden = !text;
  say(byId("notice"), text);
}

let isLost = false;
function lost(now) {
  if (now) notice("The demonstration does not answer: has it ended? What you see is old.");
  else if (isLost) notice("");
  isLost = now;
}

void watch();
