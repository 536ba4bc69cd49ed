// Order: what one client sends is applied in that order, and what is sent to it arrives in that order, nothing twice and
// nothing missing (contract 4.2, 6.1).

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { Client, Raw } from "./lib/signalr.mjs";
import { until, world } from "./lib/processes.mjs";

describe("order", () => {
  let app, nodes;
  let stop = async () => {};
  let clients = [];
  const open = async (index) => {
    const client = await Client.connect(nodes[index % nodes.length].url, { name: `client ${index}` });
    clients.push(client);
    return client;
  };

  before(async () => {
    ({ app, nodes, stop } = await world({ count: 2 }));
  });
  after(() => stop());
  afterEach(async () => {
    await Promise.all(clients.map((client) => client.stop()));
    clients = [];
    await app.empty();
  });

  test("200 clients: a request and 20 updates in one breath each", async () => {
    const updates = 20;
    // A cold pool is the hard case (contract 8, check 2), and npm clients put their calls in one frame.
    const senders = await Promise.all(Array.from({ length: 200 }, (_, index) => open(index)));
    await Promise.all(
      senders.map(async (client, index) => {
        const calls = [client.request("HelloWorldVM", { $vmArg: { TickInterval: "0" } })];
        for (let i = 1; i <= updates; i += 1) {
          calls.push(client.update("HelloWorldVM", { FirstName: `${index}-${i}`, LastName: "." }));
        }
        await Promise.all(calls);
      }),
    );
    for (const [index, client] of senders.entries()) {
      const names = () =>
        client.responses
          .map(({ data }) => data.FullName)
          .filter((name) => name !== undefined)
          // The first is the state the request asked for.
          .slice(1);
      await until(`the updates of ${client.name}, which has ${JSON.stringify(names())}`, () => names().length >= updates);
      assert.deepEqual(
        names(),
        Array.from({ length: updates }, (_, i) => `${index}-${i + 1} .`),
      );
    }
  });

  test("a chat room: everyone hears each sender in its order, once", async () => {
    const [senders, listeners, messages] = [4, 8, 100];
    const rooms = [];
    for (let i = 0; i < senders + listeners; i += 1) {
      const client = await open(i);
      await client.request("ChatRoomVM", { $vmArg: { ChatRoom: "Order", ClientId: `c${i}` } });
      await client.response("its state", ({ vmId }) => vmId === "ChatRoomVM");
      rooms.push(client);
    }
    // Who is in the room is asked of the room, not of the clock: everyone hears a first word of everyone.
    const heard = (client) =>
      client.responses
        .map(({ data }) => data.Messages_add)
        .flat()
        .filter((message) => message !== undefined && message !== null);
    const say = (client, sender, sequence) =>
      client.update("ChatRoomVM", {
        SendMessage: { MessageId: `${sender}-${sequence}`, SenderId: sender, Time: new Date().toISOString(), Sequence: sequence },
      });
    await Promise.all(rooms.map((client, i) => say(client, `c${i}`, 0)));
    for (const client of rooms) {
      await until(`${client.name} to hear everyone`, () => heard(client).length === rooms.length);
    }

    await Promise.all(
      rooms.slice(0, senders).flatMap((client, i) => Array.from({ length: messages }, (_, n) => say(client, `c${i}`, n + 1))),
    );
    for (const client of rooms) {
      await until(`${client.name} to hear all`, () => heard(client).length >= rooms.length + senders * messages);
      for (let i = 0; i < senders; i += 1) {
        assert.deepEqual(
          heard(client)
            .filter((message) => message.SenderId === `c${i}`)
            .map((message) => message.Sequence),
          Array.from({ length: messages + 1 }, (_, n) => n),
          `${client.name} hearing c${i}`,
        );
      }
    }
  });

  test("a broadcast group: every tick once and in order", async () => {
    const listeners = [];
    for (let i = 0; i < 10; i += 1) {
      const client = await open(i);
      await client.request("BroadcastVM", { $vmArg: { TickInterval: "50" } });
      listeners.push(client);
    }
    const ticks = (client) =>
      client.responses.filter(({ data }) => data.Tick?.Sequence !== undefined).map(({ data }) => data.Tick.Sequence);
    for (const client of listeners) {
      await until(`${client.name} to hear ticks, it has ${ticks(client)}`, () => ticks(client).length >= 5);
      const [first, ...rest] = ticks(client);
      assert.deepEqual(
        rest,
        rest.map((_, i) => first + i + 1),
        client.name,
      );
    }
  });

  test("answers to one frame of many records come whole, in order", async () => {
    const raw = await Raw.connect(nodes[0].url);
    clients.push(raw);
    const calls = Array.from({ length: 300 }, (_, i) => ({
      type: 1,
      invocationId: String(i),
      target: i === 0 ? "Request_VM" : "Update_VM",
      arguments: ["HelloWorldVM", i === 0 ? {} : { FirstName: `n${i}`, LastName: "." }],
    }));
    // Far more than one receive buffer, still each record within its limit.
    raw.send(...calls);
    await raw.response("the last", ({ data }) => data.FullName === "n299 .");
    const names = raw.responses.map(({ data }) => data.FullName).filter((name) => /^n\d+ \.$/.test(name));
    assert.deepEqual(
      names,
      calls.slice(1).map((_, i) => `n${i + 1} .`),
    );
    await until("the completions", () => raw.records.filter(({ type }) => type === 3).length === calls.length);
    assert.deepEqual(
      raw.records.filter(({ type }) => type === 3).map(({ invocationId }) => invocationId),
      calls.map(({ invocationId }) => invocationId),
    );
    assert.equal(raw.torn, undefined);
  });
});
