// What every client has to be able to do, whatever its version, transport, protocol and way in: one row of the matrix.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { Client, Raw } from "./signalr.mjs";
import { until } from "./processes.mjs";

const require = createRequire(import.meta.url);
// `@microsoft/signalr` 5 takes a machine with `fetch` for a browser, which Node was not in its time: it binds it to `self`.
globalThis.self ??= globalThis;

/** Client libraries by the folder they are installed in, each with the MessagePack package of its time. */
const LIBRARIES = [
  { folder: "signalr10", messagePack: "msgpack10" },
  { folder: "signalr5", messagePack: "msgpack5" },
  { folder: "signalr1", messagePack: "msgpack1" },
];

/** Server-Sent Events carry text only; only a WebSocket needs no token. */
const WAYS = [
  { transport: "WebSockets", protocol: "json", negotiation: "negotiate" },
  { transport: "WebSockets", protocol: "json", negotiation: "skip" },
  { transport: "WebSockets", protocol: "messagepack", negotiation: "negotiate" },
  { transport: "WebSockets", protocol: "messagepack", negotiation: "skip" },
  { transport: "ServerSentEvents", protocol: "json", negotiation: "negotiate" },
  { transport: "LongPolling", protocol: "json", negotiation: "negotiate" },
  { transport: "LongPolling", protocol: "messagepack", negotiation: "negotiate" },
];

export const ROWS = LIBRARIES.flatMap(({ folder, messagePack }) => {
  const { name: client, version } = packageOf(folder);
  return WAYS.map((way) => ({ client, version, folder, messagePack, ...way }));
});

export function packageOf(folder) {
  return require(`${folder}/package.json`);
}

/** A MessagePack protocol of the package in this folder. */
export function messagePackOf(folder) {
  return new (require(folder).MessagePackHubProtocol)();
}

export function nameOf({ client, version, transport, protocol, negotiation }) {
  return `${client} ${version}, ${transport}, ${protocol}, ${negotiation}`;
}

/** The head of the table that `tableRow` prints rows of. */
export const TABLE_HEAD = "| client | version | transport | protocol | negotiation | ms |\n|---|---|---|---|---|---|";

export function tableRow({ client, version, transport, protocol, negotiation }, milliseconds) {
  return `| ${client} | ${version} | ${transport} | ${protocol} | ${negotiation} | ${milliseconds} |`;
}

/** Connects a row's client, which then is on the transport that the row names. */
export async function connect(row, url, options = {}) {
  const library = require(row.folder);
  const client = await Client.connect(url, {
    name: nameOf(row),
    library,
    transport: library.HttpTransportType[row.transport],
    skipNegotiation: row.negotiation === "skip",
    protocol: row.protocol === "messagepack" ? messagePackOf(row.messagePack) : undefined,
    ...options,
  });
  assert.equal(client.transport, row.transport);
  return client;
}

let rooms = 0;

/**
 * One row from beginning to end, beside a witness on another node: connect, request a view model, update it, say something to a
 * group and hear the witness there, stop. Afterwards the app server remembers nobody. Returns the milliseconds up to the stop.
 */
export async function walk(row, { app, url, witnessUrl = url, options, look }) {
  const started = performance.now();
  const client = await connect(row, url, options);
  await speak(client, { witnessUrl, look: look && (() => look(client)) });
  await client.stop();
  const milliseconds = Math.round(performance.now() - started);
  await app.empty();
  return milliseconds;
}

/** The part of `walk` between connect and stop. */
export async function speak(client, { witnessUrl, look }) {
  await client.request("HelloWorldVM", { $vmArg: { FirstName: 'é"😀', TickInterval: 0 } });
  assert.equal(await client.value("HelloWorldVM", "FullName"), 'é"😀 World');

  const from = client.responses.length;
  await client.update("HelloWorldVM", { FirstName: "Ada", LastName: "Lovelace" });
  await client.response(
    "the whole name",
    ({ vmId, data }) => vmId === "HelloWorldVM" && data.FullName === "Ada Lovelace",
    from,
  );

  // A room of the app server is a SignalR group here.
  const room = `Room ${(rooms += 1)}`;
  const witness = await Raw.connect(witnessUrl);
  witness.send({ type: 1, target: "Request_VM", arguments: ["ChatRoomVM", { $vmArg: { ChatRoom: room, ClientId: "w" } }] });
  await witness.value("ChatRoomVM", "Messages");
  await client.request("ChatRoomVM", { $vmArg: { ChatRoom: room, ClientId: "c" } });
  await client.value("ChatRoomVM", "Messages");

  const heard = (who, id) =>
    who.response(`message ${id}`, ({ data }) => data.Messages_add?.MessageId === id);
  const message = (id) => ({ SendMessage: { MessageId: id, SenderId: "é", Time: new Date().toISOString(), Sequence: 1 } });
  await client.update("ChatRoomVM", message("1"));
  await Promise.all([heard(client, "1"), heard(witness, "1")]);
  witness.send({ type: 1, target: "Update_VM", arguments: ["ChatRoomVM", message("2")] });
  await Promise.all([heard(client, "2"), heard(witness, "2")]);
  for (const who of [client, witness]) {
    const ids = who.responses.filter(({ data }) => data.Messages_add).map(({ data }) => data.Messages_add.MessageId);
    assert.deepEqual(ids, ["1", "2"], `${who.name} hears each message once`);
  }

  await look?.();
  assert.equal(witness.torn, undefined);
  witness.stop();
  await until("the witness to be gone", () => witness.closed);
}
