// Several upstreams behind one node (contract 5): filters in order, a fall-through, a mirror; groups of one app server are not
// another's; and what is dead or stands still delays nobody else.

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { Tab } from "./lib/dotnetify.mjs";
import { Client } from "./lib/signalr.mjs";
import { App, direct, Node, until, within } from "./lib/processes.mjs";

const BROADCAST = 'vm_id == "BroadcastVM"';
const CHAT = 'vm_id.startsWith("ChatRoom")';

/** `value` at the place in a sorted list that 99 of 100 are not behind. */
const p99 = (sorted) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))];

const quiet = { $vmArg: { TickInterval: "0" } };
const states = (client, vmId) => client.responses.filter((response) => response.vmId === vmId);

describe("upstreams", { skip: direct }, () => {
  const stops = [];
  const start = async (what) => {
    stops.push(() => what.stop());
    return what;
  };
  const app = async (options) => start(await App.start(options));
  const node = async (upstream, options) => start(await Node.configured(undefined, { upstream }, options));
  after(async () => {
    for (const stop of stops.reverse()) await stop();
  });

  test("two filters, a fall-through and an Observer; the same group on two app servers is two groups", async () => {
    const [broadcast, chat, rest] = [await app({ name: "broadcast" }), await app({ name: "chat" }), await app({ name: "rest" })];
    const observer = await app({ observer: true });
    const front = await node([
      { name: "eye", kind: "observer", url: observer.url },
      { name: "broadcast", url: broadcast.url, filter: BROADCAST },
      { name: "chat", url: chat.url, filter: CHAT },
      { name: "rest", url: rest.url },
    ]);

    // One page with a view model on each of the three.
    const tab = new Tab(front.url);
    const hello = tab.connect("HelloWorldVM", { vmArg: { TickInterval: 0 } });
    const ticking = tab.connect("BroadcastVM", { vmArg: { TickInterval: 50 } });
    const room = tab.connect("ChatRoomVM", { vmArg: { ChatRoom: "BroadcastVM", ClientId: "tab" } });
    await hello.has("its name", (state) => state.FullName === "Hello World");
    await ticking.has("ticks", (state) => state.Tick?.Sequence > 2);
    await room.has("its room", (state) => state.ChatRoom === "BroadcastVM");
    assert.deepEqual(tab.states.filter((state) => state.startsWith("error")), []);

    // BroadcastVM's group is "BroadcastVM", and so is this room's, on another server.
    const talker = await Client.connect(front.url, { name: "talker" });
    await talker.request("ChatRoomVM", { $vmArg: { ChatRoom: "BroadcastVM", ClientId: "talker" } });
    await talker.value("ChatRoomVM", "ChatRoom");
    const listener = await Client.connect(front.url, { name: "listener" });
    await listener.request("BroadcastVM", { $vmArg: {} });
    await listener.value("BroadcastVM", "TickInterval");
    for (let i = 0; i < 10; i += 1) {
      await talker.update("ChatRoomVM", { SendMessage: { MessageId: `m${i}`, SenderId: "talker", Sequence: i } });
    }
    await room.has("ten messages", (state) => state.Messages?.length === 10);
    const heard = states(listener, "BroadcastVM").length;
    await until("the listener to hear ten ticks more", () => states(listener, "BroadcastVM").length > heard + 10);
    assert.deepEqual(states(listener, "ChatRoomVM"), [], "the listener is in no room");
    assert.deepEqual(states(talker, "BroadcastVM"), [], "the talker hears no ticks");
    const ticks = states(listener, "BroadcastVM").map(({ data }) => data.Tick?.Sequence).filter((tick) => tick !== undefined);
    assert.deepEqual(ticks, [...new Set(ticks)], "no tick comes twice");

    assert.deepEqual(
      await Promise.all([broadcast, chat, rest].map(async (server) => (await server.double()).view_models)),
      [2, 2, 1],
    );
    await until("the counters", async () => (await front.metric("signalring_upstream_messages_total", 'upstream="rest"')) === 1);
    assert.equal(await front.metric("signalring_upstream_messages_total", 'result="forwarded",upstream="chat"'), 12);
    const seen = await until("the Observer to have seen all three clients", async () => {
      const seen = await observer.observed();
      return Object.keys(seen.clients).length === 3 && seen;
    });
    const calls = Object.values(seen.clients).flatMap((client) => Object.values(client.calls));
    assert.equal(calls.reduce((sum, count) => sum + count, 0), 3 + 11 + 1, "every message, counted once");
    assert.ok(Object.values(seen.clients).every((client) => ["", "{}"].includes(client.last_data ?? "")), "no payloads");
    assert.deepEqual([seen.stale, seen.faults, seen.ignored], [0, 0, 0]);

    // A client's end reaches every upstream that saw it, and no other.
    await Promise.all([tab.close(), talker.stop(), listener.stop()]);
    await Promise.all([broadcast, chat, rest].map((server) => server.empty()));
    await until("the Observer to see them gone", async () => (await observer.observed()).disconnects === 3);
    assert.equal((await observer.observed()).innocents, 0);
  });

  test("what no upstream takes is answered as dotNetify answers what it does not know", async () => {
    const [broadcast, chat] = [await app(), await app()];
    const front = await node([
      { name: "broadcast", url: broadcast.url, filter: BROADCAST },
      { name: "chat", url: chat.url, filter: CHAT },
    ]);
    const tab = new Tab(front.url);
    const lost = tab.connect("HelloWorldVM");
    await until("the exception", () => lost.exceptions.length === 1);
    assert.deepEqual(lost.exceptions, [
      {
        name: "Exception",
        message:
          "[dotNetify] ERROR: 'HelloWorldVM' is not a known view model! Its assembly must be registered through VMController.RegisterAssembly.",
      },
    ]);
    // An app server says the same of what it does not know.
    const unknown = tab.connect("ChatRoomOfNobody");
    await until("the app server's exception", () => unknown.exceptions.length === 1);
    assert.equal(unknown.exceptions[0].message, lost.exceptions[0].message.replace("HelloWorldVM", "ChatRoomOfNobody"));
    // And the connection goes on.
    const ticking = tab.connect("BroadcastVM", { vmArg: { TickInterval: 50 } });
    await ticking.has("ticks", (state) => state.Tick?.Sequence > 1);
    const unrouted = (call) => front.metric("signalring_unrouted_total", `call="${call}"`);
    assert.deepEqual([await unrouted("request_vm"), await unrouted("update_vm")], [1, 0]);
    await tab.close();
  });

  test("a view model stays where its request went until it is disposed", async () => {
    const [first, rest] = [await app(), await app()];
    const front = await node([
      // Takes requests only: every update behind one would go elsewhere, if each message were asked anew.
      { name: "first", url: first.url, filter: 'call_type == "Request_VM" && vm_id == "HelloWorldVM"' },
      { name: "rest", url: rest.url },
    ]);
    const client = await Client.connect(front.url);
    await client.request("HelloWorldVM", quiet);
    for (let i = 0; i < 20; i += 1) await client.update("HelloWorldVM", { FirstName: `n${i}` });
    await client.response("the last name", ({ data }) => data.FullName === "n19 World");
    assert.deepEqual([(await first.double()).invokes, (await rest.double()).invokes], [21, 0]);
    await client.dispose("HelloWorldVM");
    await first.settled("the view model is gone", ({ view_models }) => view_models === 0);

    // Disposed: now each message is asked for itself, and this one goes to the fall-through, which does not know it.
    await client.update("HelloWorldVM", { FirstName: "late" });
    await rest.settled("it has the update", ({ dropped_updates }) => dropped_updates === 1);
    await client.request("HelloWorldVM", quiet);
    await first.settled("it is asked again", ({ view_models }) => view_models === 1);
    await client.stop();
    for (const server of [first, rest]) await server.settled("nobody is bound", ({ bindings }) => bindings === 0);
  });

  test("a dead or frozen first upstream and mirror delay nobody else", async (t) => {
    const [clients, rounds] = [20, 50];
    const [chat, mirror, observer] = [await app({ name: "chat" }), await app({ name: "mirror" }), await app({ observer: true })];
    const rest = await app({ name: "rest" });
    const front = await node([
      { name: "chat", url: chat.url, filter: CHAT },
      { name: "mirror", url: mirror.url, halt_pipeline: false },
      { name: "eye", kind: "observer", url: observer.url },
      { name: "rest", url: rest.url },
    ]);
    const others = await Promise.all(Array.from({ length: clients }, (_, i) => Client.connect(front.url, { name: `client ${i}` })));
    await Promise.all(others.map((client) => client.request("HelloWorldVM", quiet)));
    await Promise.all(others.map((client) => client.value("HelloWorldVM", "FullName")));

    let number = 0;
    const measure = async () => {
      const times = [];
      const one = async (client) => {
        for (let i = 0; i < rounds; i += 1) {
          number += 1;
          const name = `n${number}`;
          const answered = new Promise((done) => {
            const take = client.take.bind(client);
            client.take = (argument) => {
              take(argument);
              if (client.responses.at(-1).data.FullName !== `${name} World`) return;
              client.take = take;
              done();
            };
          });
          const begin = performance.now();
          client.connection.send("Update_VM", "HelloWorldVM", { FirstName: name });
          await within(`the answer to ${client.name}`, answered);
          times.push(performance.now() - begin);
        }
      };
      await Promise.all(others.map(one));
      return times.sort((a, b) => a - b);
    };
    // People keep asking for what is dead, and wait.
    const waiting = [];
    const ask = async () => {
      const client = await Client.connect(front.url, { name: "waiting" });
      waiting.push(client);
      client.connection.send("Request_VM", "ChatRoomVM", { $vmArg: { ChatRoom: "R", ClientId: "w" } });
    };

    await measure();
    const healthy = await measure();
    for (const server of [chat, mirror, observer]) server.child.kill("SIGSTOP");
    await Promise.all(Array.from({ length: 5 }, ask));
    const frozen = await measure();
    await Promise.all([chat, mirror, observer].map((server) => server.kill()));
    await until("the lanes to be lost", async () => (await front.metric("signalring_upstream_up")) === 1);
    await Promise.all(Array.from({ length: 5 }, ask));
    const dead = await measure();

    const row = (name, times) => `${name}: p50 ${times[times.length >> 1].toFixed(1)} ms, p99 ${p99(times).toFixed(1)} ms`;
    for (const line of [row("all there", healthy), row("three frozen", frozen), row("three dead", dead)]) t.diagnostic(line);
    for (const times of [frozen, dead]) {
      // Waiting for a dead one would be seconds; a busy machine is not.
      assert.ok(p99(times) < 5 * p99(healthy) + 250, `${p99(times)} ms and ${p99(healthy)} ms when all were there`);
    }
    const ready = await fetch(`${front.admin}/ready`);
    const text = await ready.text();
    assert.equal(ready.status, 200, text);
    for (const name of ["chat", "mirror", "eye"]) assert.match(text, new RegExp(`; (down: )?${name} http://`));

    await Promise.all([...others, ...waiting].map((client) => client.stop()));
    await rest.empty();
  });
});
