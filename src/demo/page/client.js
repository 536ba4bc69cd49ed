// A small dotNetify client: SignalR's JSON protocol over one WebSocket, and view models on top of it.
//
// What it does is what the npm client does (contract 1.2 to 1.4): negotiate, handshake, pings, a new connection after 2, 5, 10, 10... s,
// and every live view model requested again with its original argument.

const SEPARATOR = "\u001e";
const RETRY_MS = [2000, 5000, 10000];
const PING_MS = 15000;
const SERVER_TIMEOUT_MS = 30000;
const CONNECT_TIMEOUT_MS = 10000;
// A node without its app server refuses a request after a while; the view model is asked for again after this.
const AGAIN_MS = 5000;

export class Hub {
  #url;
  #socket = null;
  #viewModels = new Map();
  #onState;
  #retries = 0;
  #retryTimer = 0;
  #isWaiting = false;
  #pingTimer = 0;
  #silenceTimer = 0;
  #againTimer = 0;
  #stopped = false;
  // Grows with every attempt: what an earlier one still delivers is not listened to.
  #attempt = 0;

  // `url` is the node's hub, e.g. http://127.0.0.1:5000/dotnetify; `onState(state)` hears connecting, connected, reconnecting, disconnected.
  constructor(url, onState) {
    this.#url = url;
    this.#onState = onState;
  }

  start() {
    this.#onState("connecting");
    this.#connect();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#retryTimer);
    this.#attempt += 1;
    this.#drop();
    this.#onState("disconnected");
  }

  // Does not wait for the next attempt's time: something is known to have come back.
  retry() {
    if (!this.#isWaiting) return this.#requestMissing();
    clearTimeout(this.#retryTimer);
    this.#isWaiting = false;
    this.#connect();
  }

  // Connects a view model; `onData(data)` gets each response as an object. `argument()` is asked anew at each request.
  request(vmId, argument, onData) {
    this.#viewModels.set(vmId, { argument, onData, isThere: false });
    this.#invoke("Request_VM", [vmId, { $vmArg: argument() }]);
  }

  // Returns whether it could be sent.
  update(vmId, values) {
    return this.#invoke("Update_VM", [vmId, values]);
  }

  dispose(vmId) {
    this.#viewModels.delete(vmId);
    this.#invoke("Dispose_VM", [vmId]);
  }

  async #connect() {
    const attempt = ++this.#attempt;
    try {
      const response = await fetch(`${this.#url}/negotiate?negotiateVersion=1`, {
        method: "POST",
        credentials: "include",
        headers: { "X-Requested-With": "XMLHttpRequest" },
        signal: AbortSignal.timeout(CONNECT_TIMEOUT_MS),
      }).catch(() => {
        throw new Error("the node does not answer");
      });
      if (!response.ok) throw new Error(`negotiate answered ${response.status}`);
      const answer = await response.json();
      if (answer.error) throw new Error(answer.error);
      if (attempt !== this.#attempt) return;
      this.#open(attempt, answer.connectionToken ?? answer.connectionId);
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(error);
    }
  }

  #open(attempt, token) {
    const url = new URL(this.#url);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.search = `?id=${token}`;
    const socket = new WebSocket(url);
    this.#socket = socket;
    let unread = "";
    let greeted = false;
    const current = (action) => (event) => {
      if (attempt === this.#attempt) action(event);
    };
    this.#listen();
    socket.onopen = current(() => socket.send(`{"protocol":"json","version":1}${SEPARATOR}`));
    socket.onclose = current((event) => this.#lost(new Error(`socket closed, code ${event.code}`)));
    socket.onmessage = current(({ data }) => {
      this.#listen();
      const records = (unread + data).split(SEPARATOR);
      unread = records.pop();
      for (const record of records) {
        if (attempt !== this.#attempt) return;
        const message = JSON.parse(record);
        if (greeted) {
          this.#receive(message);
        } else if (message.error) {
          this.#lost(new Error(message.error));
        } else {
          greeted = true;
          this.#connected();
        }
      }
    });
  }

  #connected() {
    this.#retries = 0;
    this.#pingTimer = setInterval(() => this.#send({ type: 6 }), PING_MS);
    this.#send({ type: 6 });
    for (const viewModel of this.#viewModels.values()) viewModel.isThere = false;
    this.#requestMissing();
    this.#onState("connected");
  }

  #requestMissing() {
    clearTimeout(this.#againTimer);
    for (const [vmId, { argument, isThere }] of this.#viewModels) {
      if (!isThere) this.#invoke("Request_VM", [vmId, { $vmArg: argument() }]);
    }
  }

  #receive(message) {
    if (message.type === 7) return this.#lost(new Error(message.error ?? "closed by the server"));
    if (message.type !== 1 || message.target.toLowerCase() !== "response_vm") return;
    const [[vmId, data]] = message.arguments;
    const viewModel = this.#viewModels.get(vmId);
    if (!viewModel) return this.#invoke("Dispose_VM", [vmId]);
    const values = JSON.parse(data);
    if (!values.ExceptionType) {
      viewModel.isThere = true;
    } else if (!viewModel.isThere) {
      clearTimeout(this.#againTimer);
      this.#againTimer = setTimeout(() => this.#requestMissing(), AGAIN_MS);
    }
    viewModel.onData(values);
  }

  #invoke(target, values) {
    return this.#send({ type: 1, target, arguments: values });
  }

  #send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message) + SEPARATOR);
    return true;
  }

  // Anything from the server counts as a sign of life.
  #listen() {
    clearTimeout(this.#silenceTimer);
    this.#silenceTimer = setTimeout(() => this.#lost(new Error("the server is silent")), SERVER_TIMEOUT_MS);
  }

  #lost(error) {
    this.#attempt += 1;
    this.#drop();
    if (this.#stopped) return;
    this.#onState("reconnecting", error);
    const delay = RETRY_MS[Math.min(this.#retries, RETRY_MS.length - 1)];
    this.#retries += 1;
    this.#isWaiting = true;
    this.#retryTimer = setTimeout(() => this.retry(), delay);
  }

  #drop() {
    clearInterval(this.#pingTimer);
    clearTimeout(this.#silenceTimer);
    clearTimeout(this.#againTimer);
    this.#socket?.close();
    this.#socket = null;
  }
}

// Merges a response into a view model's state. Keys ending in _add, _update and _remove are operations on lists, whose items are
// recognised by the key that `<list>_itemKey` names (contract 1.4).
export function merge(state, data) {
  for (const [key, value] of Object.entries(data)) {
    const [, list, operation] = /^(.+)_(add|update|remove)$/.exec(key) ?? [];
    const items = list && state[list];
    if (!Array.isArray(items)) {
      state[key] = value;
      continue;
    }
    const itemKey = state[`${list}_itemKey`];
    const identity = operation === "remove" ? value : value?.[itemKey];
    const index = itemKey ? items.findIndex((item) => item[itemKey] === identity) : -1;
    if (operation === "remove") {
      if (index >= 0) items.splice(index, 1);
    } else if (index >= 0) {
      items[index] = { ...items[index], ...value };
    } else if (operation === "add") {
      items.push(value);
    }
  }
  return state;
}
