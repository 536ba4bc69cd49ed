// Two ways to be a SignalR client: the npm `@microsoft/signalr` 10 client, unmodified, and a bare WebSocket for the shapes
// that no well-behaved library sends.

import signalR from "signalr10";
import { WebSocket } from "ws";
import { Hopeless, until, within } from "./processes.mjs";

export const { HttpTransportType, HubConnectionState } = signalR;
export const RECORD_END = "\u001e";

/** The name of the transport that a hub connection of the npm client uses, as negotiate spells it. */
export function transportOf(hubConnection) {
  const kind = hubConnection.connection.transport?.constructor.name.replace(/Transport$/, "");
  return kind === "WebSocket" ? "WebSockets" : kind;
}

/** Remembers `Response_VM`s and finds among them. */
class Responses {
  responses = [];

  take(argument) {
    // Exactly one argument, and that is [vmId, JSON text].
    const [vmId, text] = argument;
    this.responses.push({ vmId, data: JSON.parse(text) });
  }

  /** The first response at or after index `from` that satisfies `test`. */
  async response(what, test, from = 0) {
    return await until(`${this.name}: ${what}`, () => {
      const found = this.responses.slice(from).find(test);
      if (!found && this.closed) throw new Hopeless(`${this.name} was closed (${this.closed.error}) while waiting for ${what}`);
      return found;
    }).catch((error) => {
      const last = JSON.stringify(this.responses.slice(-3)).slice(0, 2000);
      throw new Error(`${error.message}; the last responses were ${last}`, { cause: error });
    });
  }

  /** The first response of a view model that carries `property`. */
  async value(vmId, property, from = 0) {
    const found = await this.response(
      `${vmId}.${property}`,
      (response) => response.vmId === vmId && property in response.data,
      from,
    );
    return found.data[property];
  }
}

/** The npm client. `library` is another version of it, `protocol` another protocol than JSON. */
export class Client extends Responses {
  static async connect(url, options) {
    const client = Client.build(url, options);
    await client.start();
    return client;
  }

  /** One that is not started yet. */
  static build(url, { reconnect, stateful, name = "client", library = signalR, protocol, ...options } = {}) {
    const client = new Client();
    client.name = name;
    let builder = new library.HubConnectionBuilder()
      .withUrl(`${url}/dotnetify`, options)
      .configureLogging(library.LogLevel.None);
    if (reconnect) builder = builder.withAutomaticReconnect(Array(40).fill(250));
    if (stateful) builder = builder.withStatefulReconnect(stateful === true ? undefined : stateful);
    if (protocol) builder = builder.withHubProtocol(protocol);
    client.connection = builder.build();
    client.connection.on("Response_VM", (argument) => client.take(argument));
    client.connection.onclose((error) => {
      client.closed = { error };
    });
    return client;
  }

  start() {
    return within(`${this.name} to connect`, this.connection.start());
  }

  /** The name of the transport it came to use. */
  get transport() {
    return transportOf(this.connection);
  }

  request(vmId, vmArg = {}) {
    return within(`Request_VM ${vmId}`, this.connection.invoke("Request_VM", vmId, vmArg));
  }
  update(vmId, data) {
    return within(`Update_VM ${vmId}`, this.connection.invoke("Update_VM", vmId, data));
  }
  dispose(vmId) {
    return within(`Dispose_VM ${vmId}`, this.connection.invoke("Dispose_VM", vmId));
  }
  stop() {
    return this.connection.stop();
  }
}

/** A WebSocket that says what it is told to. */
export class Raw extends Responses {
  static async open(url, { id, query = id === undefined ? "" : `?id=${id}`, socketPath, ...options } = {}) {
    const raw = new Raw();
    raw.name = "raw client";
    raw.records = [];
    raw.frames = 0;
    const host = socketPath ? `ws+unix:${socketPath}:` : url.replace(/^http/, "ws");
    raw.socket = new WebSocket(`${host}/dotnetify${query}`, options);
    raw.socket.on("message", (data) => {
      raw.frames += 1;
      const text = String(data);
      // Contract of the transport: a server's WebSocket message holds whole records.
      if (!text.endsWith(RECORD_END)) raw.torn = text;
      for (const record of text.split(RECORD_END).slice(0, -1)) {
        const message = JSON.parse(record);
        raw.records.push(message);
        if (message.type === 1) raw.take(message.arguments[0]);
      }
    });
    raw.socket.on("error", (error) => {
      raw.error = error;
    });
    raw.socket.on("close", (code, reason) => {
      raw.closed = { code, reason: String(reason), error: raw.error };
    });
    await until("the WebSocket to open", () => {
      if (raw.error) throw new Hopeless(raw.error.message);
      return raw.socket.readyState === WebSocket.OPEN;
    });
    return raw;
  }

  /** Opens and shakes hands. */
  static async connect(url, options) {
    const raw = await Raw.open(url, options);
    raw.send({ protocol: "json", version: 1 });
    await until("the handshake's answer", () => raw.records.length > 0);
    return raw;
  }

  /** Sends records in one WebSocket message. */
  send(...records) {
    this.socket.send(records.map((record) => JSON.stringify(record) + RECORD_END).join(""));
  }

  async record(what, test) {
    return await until(`a record: ${what}`, () => this.records.find(test)).catch((error) => {
      throw new Error(`${error.message}; records: ${JSON.stringify(this.records).slice(0, 2000)}`);
    });
  }

  async end() {
    return await until("the WebSocket to close", () => this.closed);
  }

  stop() {
    this.socket.terminate();
  }
}

/** `POST negotiate`, parsed. */
export async function negotiate(url, query = "?negotiateVersion=1") {
  const answer = await fetch(`${url}/dotnetify/negotiate${query}`, { method: "POST" });
  return { status: answer.status, type: answer.headers.get("content-type"), body: await answer.json() };
}
