// Stateful reconnect (reference 14) with the npm client 10: its socket is cut in the middle of traffic, and it must look to both
// sides as if nothing had happened.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { messagePackOf } from "./lib/matrix.mjs";
import { App, Node, until, within, world } from "./lib/processes.mjs";
import { Relay } from "./lib/relay.mjs";
import { Client, Raw } from "./lib/signalr.mjs";

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const names = (client) => client.responses.filter(({ data }) => "FullName" in data).map(({ data }) => data.FullName);
const SOCKET = /^GET \/dotnetify\?id=/;

async function connected(t, node, { protocol, ...options } = {}) {
  const relay = await Relay.to(node.port);
  t.after(() => relay.stop());
  const client = await Client.connect(relay.url, { stateful: true, reconnect: true, protocol, ...options });
  t.after(() => client.stop());
  assert.equal(client.transport, "WebSockets");
  await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0, FirstName: "0", LastName: "." } });
  await client.value("HelloWorldVM", "FullName");
  return { client, relay };
}

/** Sends numbered updates without waiting for one before the next, until `over` says so; every one of them is to be completed. */
async function traffic(client, over) {
  const calls = [];
  for (let i = 1; !over(); i += 1) {
    calls.push(client.connection.invoke("Update_VM", "HelloWorldVM", { FirstName: String(i) }));
    await pause(2);
  }
  await within("every call to be completed", Promise.all(calls));
  const sent = Array.from({ length: calls.length + 1 }, (_, i) => `${i} .`);
  await client.response("the last of them", ({ data }) => data.FullName === sent.at(-1));
  assert.deepEqual(names(client), sent, "everything once and in order");
}

describe("stateful reconnect", { concurrency: true, timeout: 120_000 }, () => {
  let app, node;
  let stop = async () => {};
  before(async () => {
    ({ app, nodes: [node], stop } = await world({ config: {} }));
  });
  // Every test of this group stops its own client; the app server is asked once, for all.
  after(async () => {
    await app.empty().finally(() => stop());
  });

  for (const [protocol, make] of [["json", () => undefined], ["messagepack", () => messagePackOf("msgpack10")]]) {
    test(`the socket is cut ten times in the middle of traffic: nothing lost, nothing twice (${protocol})`, async (t) => {
      const { client, relay } = await connected(t, node, { protocol: make() });
      const { connectionId } = client.connection;
      let cuts = 0;
      const cutting = (async () => {
        for (const loss of [{}, { toNode: true }, { toClient: true }, { toNode: true, toClient: true }, {}, {}, { toClient: true }, { toNode: true }, {}, {}]) {
          await pause(60);
          // What goes into the hole is what has to be sent again.
          relay.swallow(loss);
          await pause(30);
          assert.ok(relay.cut() >= 1);
          cuts += 1;
          await until("the client to be back", () => relay.count(SOCKET) === 1 + cuts && relay.pairs.size === 1);
        }
      })();
      let over = false;
      cutting.catch(() => {}).finally(() => {
        over = true;
      });
      await traffic(client, () => over);
      await cutting;
      assert.equal(client.connection.connectionId, connectionId);
      assert.equal(client.connection.connection.connectionId, connectionId);
      assert.equal(relay.count(/negotiate/), 1, "no new negotiate");
      assert.equal(relay.count(SOCKET), 11);
      await client.stop();
    });
  }

  test("it is away for three seconds: what was said meanwhile is there afterwards, in order", async (t) => {
    const { client, relay } = await connected(t, node);
    const { connectionId } = client.connection;
    const other = await Raw.connect(node.url);
    t.after(() => other.stop());
    const room = { $vmArg: { ChatRoom: "Away", ClientId: "x" } };
    const ask = (target, ...args) => other.send({ type: 1, target, arguments: args });
    ask("Request_VM", "ChatRoomVM", room);
    await client.request("ChatRoomVM", room);
    await Promise.all([other.value("ChatRoomVM", "Messages"), client.value("ChatRoomVM", "Messages")]);

    relay.delay = 3_000;
    relay.cut();
    const said = Array.from({ length: 50 }, (_, i) => `m${i}`);
    for (const id of said) {
      ask("Update_VM", "ChatRoomVM", { SendMessage: { MessageId: id } });
      await pause(20);
    }
    // Its own words wait in the client.
    const call = client.connection.invoke("Update_VM", "HelloWorldVM", { FirstName: "late" });
    await client.response("the last message", ({ data }) => data.Messages_add?.MessageId === said.at(-1));
    await within("its call to be completed", call);
    await client.response("its own update", ({ data }) => data.FullName === "late .");
    const heard = client.responses.filter(({ data }) => data.Messages_add).map(({ data }) => data.Messages_add.MessageId);
    assert.deepEqual(heard, said);
    assert.equal(client.connection.connectionId, connectionId);
    assert.equal(relay.count(/negotiate/), 1);
    other.stop();
    await client.stop();
  });

  test("more than the buffer holds, while it is there: all of it arrives", async (t) => {
    // Twice 100 KB (name and greeting) before the client's first Ack, which it sends a second after the first message. The stateful
    // buffer holds 100,000 bytes; the send queue holds 256 KiB, so that a slow reader is not given up.
    const { client, relay } = await connected(t, node);
    const { connectionId } = client.connection;
    const fill = "x".repeat(10_000);
    for (let i = 1; i <= 10; i += 1) client.connection.send("Update_VM", "HelloWorldVM", { FirstName: `${i} ${fill}` }).catch(() => {});
    await client.response("the last of it", ({ data }) => data.FullName?.startsWith("10 "));
    assert.deepEqual(names(client).map((name) => name.split(" ")[0]), Array.from({ length: 11 }, (_, i) => String(i)));
    assert.equal(client.connection.connectionId, connectionId);
    assert.equal(relay.count(SOCKET), 1);
    await client.stop();
  });

  test("more than the buffer holds, while it is away: no gap goes unnoticed", async (t) => {
    const { client, relay } = await connected(t, node);
    const { connectionId } = client.connection;
    let back;
    client.connection.onreconnected((id) => {
      back = id;
    });
    const other = await Raw.connect(node.url);
    t.after(() => other.stop());
    const room = { $vmArg: { ChatRoom: "Full", ClientId: "x" } };
    const ask = (target, ...args) => other.send({ type: 1, target, arguments: args });
    ask("Request_VM", "ChatRoomVM", room);
    await client.request("ChatRoomVM", room);
    await Promise.all([other.value("ChatRoomVM", "Messages"), client.value("ChatRoomVM", "Messages")]);

    relay.delay = 2_000;
    relay.cut();
    const fill = "x".repeat(20_000);
    for (let i = 0; i < 50; i += 1) {
      ask("Update_VM", "ChatRoomVM", { SendMessage: { MessageId: `m${i}`, fill } });
      // The one who is there reads in its own time.
      if (i % 5 === 4) await other.response(`message ${i}`, ({ data }) => data.Messages_add?.MessageId === `m${i}`);
    }
    relay.delay = 0;
    const heard = () => client.responses.filter(({ data }) => data.Messages_add).map(({ data }) => data.Messages_add.MessageId);
    const all = Array.from({ length: 50 }, (_, i) => `m${i}`);
    // A megabyte is ten times the buffer. Either it was kept all the same, or the connection is over and the client knows it.
    await until("all of it, or a new connection", () => back !== undefined || heard().length === all.length);
    if (back === undefined) {
      assert.deepEqual(heard(), all);
      assert.equal(client.connection.connectionId, connectionId);
    } else {
      assert.notEqual(back, connectionId);
      assert.deepEqual(heard(), all.slice(0, heard().length), "what it heard had no gap");
      await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0, FirstName: "new" } });
      await client.response("the new state", ({ data }) => data.FirstName === "new");
    }
    other.stop();
    await client.stop();
  });

  test("a client that closes is gone at once, and a client that did not ask for it is not kept", async (t) => {
    const own = await App.start();
    t.after(() => own.stop());
    const single = await Node.configured(own);
    t.after(() => single.stop());
    const { client } = await connected(t, single);
    await client.stop();
    await own.empty();

    const relay = await Relay.to(single.port);
    t.after(() => relay.stop());
    const plain = await Client.connect(relay.url, {});
    await plain.request("HelloWorldVM");
    await plain.value("HelloWorldVM", "FullName");
    relay.cut();
    const cutAt = Date.now();
    await own.empty();
    assert.ok(Date.now() - cutAt < 5_000);
    await until("it to notice", () => plain.closed);
  });

  test("after 15 seconds it is gone, and the client starts anew", async (t) => {
    const own = await App.start();
    t.after(() => own.stop());
    const single = await Node.configured(own);
    t.after(() => single.stop());
    const { client, relay } = await connected(t, single);
    const { connectionId } = client.connection;
    let back;
    client.connection.onreconnected((id) => {
      back = id;
    });

    relay.delay = 17_000;
    relay.cut();
    const cutAt = Date.now();
    await pause(12_000);
    assert.equal((await own.double()).bindings, 1, "it is waited for");
    await own.settled("it is given up", (double) => double.bindings === 0 && double.view_models === 0);
    const waited = Date.now() - cutAt;
    assert.ok(waited >= 14_000 && waited <= 17_500, `DisconnectTimeout is 15 s (reference 13.4), it was ${waited} ms`);

    relay.delay = 0;
    await until("the client to be back", () => back);
    assert.notEqual(back, connectionId);
    assert.equal(relay.count(/negotiate/), 2, "a new negotiate");
    const from = client.responses.length;
    await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0 } });
    assert.equal(await client.value("HelloWorldVM", "FullName", from), "Hello World");
    assert.equal(client.closed, undefined);
    await client.stop();
    await own.empty();
  });
});
