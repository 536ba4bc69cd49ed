// The npm `dotnetify` client over every transport and protocol that it can be brought to use. Its own names of transports do not
// mean what they say (contract 1.2): it takes 0, 1 and 2 for SignalR's 1, 2 and 4.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Tab } from "./lib/dotnetify.mjs";
import { messagePackOf, packageOf, TABLE_HEAD, tableRow } from "./lib/matrix.mjs";
import { world } from "./lib/processes.mjs";

const { name: client, version } = packageOf("dotnetify");

/** `lacks`: what this browser does not have. `comes`: the transport that it then comes to use. */
const WAYS = [
  { says: "its default", comes: "WebSockets" },
  { says: 'transport:["serverSentEvents"]', options: { transport: ["serverSentEvents"] }, comes: "WebSockets" },
  {
    says: 'transport:["serverSentEvents"], skipNegotiation',
    options: { transport: ["serverSentEvents"], skipNegotiation: true },
    comes: "WebSockets",
  },
  { says: 'transport:["longPolling"]', options: { transport: ["longPolling"] }, comes: "ServerSentEvents", text: true },
  { says: "its default, no WebSocket", lacks: ["WebSocket"], comes: "ServerSentEvents", text: true },
  { says: "its default, no WebSocket and no EventSource", lacks: ["WebSocket", "EventSource"], comes: "LongPolling" },
];

const ROWS = WAYS.flatMap((way) => [
  { ...way, protocol: "json" },
  // Events carry text only.
  ...(way.text ? [] : ["msgpack10", "msgpack5"].map((folder) => ({ ...way, folder, protocol: `messagepack ${packageOf(folder).version}` }))),
]);

describe("npm dotnetify, every way", () => {
  let app, near, far;
  let stop = async () => {};
  const lines = [];
  before(async () => {
    ({ app, nodes: [near, far], stop } = await world({ count: 2 }));
  });
  after(() => stop());
  after(() => console.log([TABLE_HEAD, ...lines].join("\n")));

  for (const [index, row] of ROWS.entries()) {
    test(`${row.says}: ${row.comes}, ${row.protocol}`, async (t) => {
      const started = performance.now();
      const missing = new Map((row.lacks ?? []).map((name) => [name, globalThis[name]]));
      for (const name of missing.keys()) delete globalThis[name];
      t.after(() => Object.assign(globalThis, Object.fromEntries(missing)));
      const tab = new Tab(near.url, { ...row.options, protocol: row.folder && messagePackOf(row.folder) });
      t.after(() => tab.close());

      // No vmArg and no headers: newer MessagePack packages write both as null then (contract 1.3).
      const hello = tab.connect("HelloWorldVM");
      await hello.has("its state", (state) => state.FullName === "Hello World");
      assert.equal(tab.transport, row.comes);
      assert.equal(tab.hub._connection.protocol.name, row.folder ? "messagepack" : "json");
      hello.dispatch({ FirstName: 'é"😀', LastName: "Lovelace" });
      await hello.has("its name", (state) => state.FullName === 'é"😀 Lovelace');

      Object.assign(globalThis, Object.fromEntries(missing));
      const witness = new Tab(far.url);
      t.after(() => witness.close());
      const vmArg = (ClientId) => ({ ChatRoom: `Room ${index}`, ClientId });
      const [here, there] = [tab.connect("ChatRoomVM", { vmArg: vmArg("c") }), witness.connect("ChatRoomVM", { vmArg: vmArg("w") })];
      for (const room of [here, there]) await room.has("its state", (state) => state.ChatRoom === `Room ${index}`);
      here.dispatch({ SendMessage: { MessageId: "1", SenderId: "c", Time: "", Sequence: 1 } });
      await there.has("message 1", (state) => state.Messages.length === 1);
      there.dispatch({ SendMessage: { MessageId: "2", SenderId: "w", Time: "", Sequence: 1 } });
      for (const room of [here, there]) {
        await room.has("both messages", (state) => state.Messages.map((message) => message.MessageId).join() === "1,2");
        assert.deepEqual(room.exceptions, []);
      }

      hello.destroy();
      await app.settled("the view model is disposed", (double) => double.view_models === 2);
      await Promise.all([tab.close(), witness.close()]);
      await app.empty();
      const negotiation = row.options?.skipNegotiation ? "skip" : "negotiate";
      const line = { client, version, transport: row.comes, protocol: `${row.protocol} (${row.says})`, negotiation };
      lines.push(tableRow(line, Math.round(performance.now() - started)));
      assert.ok(!tab.states.some((state) => state.startsWith("error")), `states: ${tab.states}`);
    });
  }
});
