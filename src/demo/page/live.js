// The demo page's own behaviour: two view models, their fields and lists.
import { Hub, merge } from "./client.js";

const HELLO = "HelloWorldVM";
const CHAT = "ChatRoomVM";
const MESSAGES_SHOWN = 200;

const byId = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const room = query.get("room") || "Lobby";

// Inside the demonstration's page.
const isEmbedded = query.get("embed") === "1";
if (isEmbedded) document.body.classList.add("embed");

const hello = {};
let chat = {};
let sequence = 0;
// When this page's own messages left, to show how long they took to come back.
const sentAt = new Map();

const nodes = await fetch("nodes.json").then((response) => response.json());
// A node from the address is offered too, if it is one.
const asked = query.get("node")?.replace(/\/+$/, "");
if (asked && /^https?:\/\//.test(asked) && !nodes.includes(asked)) nodes.unshift(asked);
const node = nodes.includes(asked) ? asked : nodes[0] ?? location.origin;

const client = new Hub(`${node}/dotnetify`, (state, error) => {
  // Connected to the node; whether there is an app server behind it shows when it answers.
  show(state === "connected" ? "waiting" : state);
  byId("status").title = error?.message ?? "";
  notice(error && `${error.message}; trying again.`);
});

function show(state) {
  if (byId("status").dataset.state === "waiting" && state === "connected") notice();
  byId("status").dataset.state = state;
  byId("status").textContent = state === "waiting" ? "waiting for the app server" : state;
  byId("chat-send").disabled = state !== "connected";
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text ?? "";
}

// ---- node ----------------------------------------------------------------------------------------------------------

function addressOf(other) {
  const address = new URL(location.href);
  address.searchParams.set("node", other);
  // The other tab is somebody else.
  address.searchParams.delete("name");
  return address.href;
}

for (const each of nodes) {
  const option = new Option(each.replace(/^https?:\/\//, ""), each, each === node, each === node);
  byId("node").append(option);
}
byId("node").addEventListener("change", ({ target }) => location.assign(addressOf(target.value)));

const other = nodes.find((each) => each !== node);
if (other) {
  const link = document.createElement("a");
  link.href = addressOf(other);
  link.target = "_blank";
  link.rel = "noopener";
  link.textContent = `Open a second tab on ${other.replace(/^https?:\/\//, "")}`;
  byId("elsewhere").append(link, ".");
}

// ---- hello ---------------------------------------------------------------------------------------------------------

// What the visitor typed survives a reconnect: it becomes the argument of the next request.
client.request(HELLO, () => (hello.FirstName === undefined ? {} : { FirstName: hello.FirstName, LastName: hello.LastName }), (data) => {
  if (data.ExceptionType) return notice(`${data.ExceptionType}: ${data.Message}`);
  show("connected");
  // A whole state: whatever was refused meanwhile, there is an app server again.
  if ("FirstName" in data) notice();
  merge(hello, data);
  fill("first", data.FirstName);
  fill("last", data.LastName);
  byId("full").value = hello.FullName;
  byId("greetings").value = hello.Greetings;
  byId("time").textContent = hello.ServerTime;
});

// Not while it is being edited: the answer to an earlier keystroke would undo the latest.
function fill(id, value) {
  const field = byId(id);
  if (value !== undefined && document.activeElement !== field) field.value = value;
}

for (const [id, property] of [["first", "FirstName"], ["last", "LastName"]]) {
  byId(id).addEventListener("input", ({ target }) => {
    hello[property] = target.value;
    client.update(HELLO, { [property]: target.value });
  });
}

// ---- chat ----------------------------------------------------------------------------------------------------------

byId("room").textContent = room;
byId("name").value = query.get("name") || `Guest ${Math.floor(Math.random() * 900 + 100)}`;
byId("name").addEventListener("change", ({ target }) => {
  if (target.value.trim()) client.update(CHAT, { Name: target.value.trim() });
});

const chatArgument = () => ({ ChatRoom: room, ClientId: byId("name").value, Name: byId("name").value });
client.request(CHAT, chatArgument, (data) => {
  if (data.ExceptionType) return notice(`${data.ExceptionType}: ${data.Message}`);
  // A whole state replaces what was: the app server may be another one than before.
  if (data.Messages) chat = {};
  merge(chat, data);
  showMessages();
  showUsers();
});

byId("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = byId("chat-input");
  const text = input.value.trim();
  if (!text) return input.focus();
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
  const message = { MessageId: id, SenderId: byId("name").value, Time: new Date().toISOString(), Sequence: ++sequence, Text: text };
  sentAt.set(id, { at: performance.now() });
  if (sentAt.size > MESSAGES_SHOWN) sentAt.delete(sentAt.keys().next().value);
  if (client.update(CHAT, { SendMessage: message })) input.value = "";
  else notice("Not connected: the message was not sent.");
  input.focus();
});

function showMessages() {
  const log = byId("chat-log");
  const followed = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const shown = (chat.Messages ?? []).slice(-MESSAGES_SHOWN);
  const known = new Map([...log.children].map((line) => [line.dataset.id, line]));
  log.replaceChildren(...shown.map((message) => known.get(message.MessageId) ?? lineOf(message)));
  if (!shown.length) {
    const empty = document.createElement("li");
    empty.className = "empty";
    empty.textContent = "No messages yet";
    log.append(empty);
  }
  if (followed) log.scrollTop = log.scrollHeight;
}

function lineOf(message) {
  const line = document.createElement("li");
  line.dataset.id = message.MessageId;
  const head = document.createElement("b");
  const mine = sentAt.get(message.MessageId);
  const time = new Date(message.Time);
  const clock = Number.isNaN(time.getTime()) ? "" : time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  head.textContent = [message.SenderId, clock].filter(Boolean).join(" · ");
  if (mine) {
    line.className = "mine";
    mine.took ??= performance.now() - mine.at;
    head.textContent += ` · back in ${Math.max(1, Math.round(mine.took))} ms`;
  }
  line.append(head, message.Text ?? `Message ${message.Sequence}`);
  return line;
}

function showUsers() {
  const line = ({ Id, Name }) => {
    const item = document.createElement("li");
    item.dataset.id = Id;
    item.textContent = Name;
    return item;
  };
  byId("users").replaceChildren(...(chat.Users ?? []).map(line));
}

if (isEmbedded) {
  byId("title").textContent = query.get("label") ?? node;
  addEventListener("message", ({ origin, data }) => {
    if (origin === location.origin && data === "retry") client.retry();
  });
}
showMessages();
client.start();
addEventListener("pagehide", () => client.stop());
// A page restored from the back-forward cache has no connection.
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) location.reload();
});
