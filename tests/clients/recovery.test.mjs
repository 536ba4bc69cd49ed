// What happens to clients when a process dies: a node, the app server, or nobody for a long while.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Tab } from "./lib/dotnetify.mjs";
import { Client, HubConnectionState, Raw } from "./lib/signalr.mjs";
import { aliasOf, App, direct, freePort, Node, until } from "./lib/processes.mjs";

describe("recovery", { concurrency: true }, () => {
  test("a node is killed and comes back: its clients ask again by themselves", async (t) => {
    const app = await App.start();
    t.after(() => app.stop());
    const port = await freePort();
    // Lanes enough that no two clients share one: the app server learns of a dead lane's last client only (contract 4.4).
    const flags = ["--pool-size", "12"];
    let node = direct ? undefined : await Node.start(app, { port, flags });
    // Without a node in between it is the app server that dies, which is the next test.
    if (!node) return t.skip("there is no node");
    t.after(() => node.stop());

    const tabs = [new Tab(node.url), new Tab(node.url)];
    t.after(() => Promise.all(tabs.map((tab) => tab.close())));
    const hellos = tabs.map((tab, i) => tab.connect("HelloWorldVM", { vmArg: { FirstName: `Kept${i}` } }));
    for (const hello of hellos) await hello.has("its state", (state) => "FullName" in state);
    const reconnecting = await Client.connect(node.url, { reconnect: true, name: "signalr 10" });
    t.after(() => reconnecting.stop());
    await reconnecting.request("HelloWorldVM");
    let returned = false;
    reconnecting.connection.onreconnected(() => {
      returned = true;
    });

    await node.kill();
    for (const tab of tabs) await until("the tab to notice", () => tab.states.includes("disconnected"));
    const received = hellos.map((hello) => hello.received.length);
    node = await Node.start(app, { port, flags });

    for (const [i, hello] of hellos.entries()) {
      await hello.has("its state again", (_, component) => component.received.length > received[i]);
      assert.equal(hello.state.FullName, `Kept${i} World`);
      hello.dispatch({ FirstName: `Back${i}`, LastName: "Again" });
      await hello.has("its name", (state) => state.FullName === `Back${i} Again`);
    }
    await until("signalr 10 to reconnect", () => returned);
    await reconnecting.request("HelloWorldVM");
    // The clients of the dead node are not the app server's to keep: each had a lane of its own, so its end is known.
    await app.settled("only the living are bound", (double) => double.bindings === 3 && double.view_models === 3);
  });

  test("a node is asked to stop: its clients are told to come back, and the app server that they left", { skip: direct }, async (t) => {
    const app = await App.start();
    t.after(() => app.stop());
    const node = await Node.start(app);
    t.after(() => node.stop());
    const clients = [];
    for (let i = 0; i < 20; i += 1) {
      const raw = await Raw.connect(node.url);
      t.after(() => raw.stop());
      clients.push(raw);
      raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", {}] });
      await raw.value("HelloWorldVM", "FullName");
    }
    node.child.kill("SIGTERM");
    for (const raw of clients) {
      const close = await raw.record("Close", ({ type }) => type === 7);
      assert.equal(close.allowReconnect, true);
      await raw.end();
    }
    assert.deepEqual(await node.ended, { code: 0, signal: null });
    await app.empty();
  });

  test("the app server restarts: its clients are served again", async (t) => {
    const port = await freePort();
    let app = await App.start({ port });
    t.after(() => app.stop());
    const node = direct ? aliasOf(app) : await Node.start(app);
    t.after(() => node.stop());

    const tabs = Array.from({ length: 5 }, () => new Tab(node.url));
    t.after(() => Promise.all(tabs.map((tab) => tab.close())));
    const hellos = tabs.map((tab, i) => tab.connect("HelloWorldVM", { vmArg: { FirstName: `Kept${i}` } }));
    for (const hello of hellos) await hello.has("its state", (state) => "FullName" in state);

    for (const ending of ["kill", "stop"]) {
      await app[ending]();
      const received = hellos.map((hello) => hello.received.length);
      app = await App.start({ port });
      for (const [i, hello] of hellos.entries()) {
        // Replayed by the node, or asked again by the client after a Close with allowReconnect: state must come.
        await hello.has(`its state after ${ending}`, (_, component) =>
          component.received.slice(received[i]).some((change) => "FullName" in change),
        );
        assert.equal(hello.state.FullName, `Kept${i} World`);
        hello.dispatch({ FirstName: `${ending}${i}`, LastName: "X" });
        await hello.has("its name", (state) => state.FullName === `${ending}${i} X`);
      }
      const settled = await app.settled("everyone is bound, nobody twice", (double) => double.view_models === tabs.length);
      if (!direct) assert.equal(settled.bindings, tabs.length);
    }
    await Promise.all(tabs.map((tab) => tab.close()));
    await app.empty();
  });

  test("a client that asks while the app server is away hears about it", { skip: direct }, async (t) => {
    const port = await freePort();
    const app = await App.start({ port });
    t.after(() => app.stop());
    const node = await Node.start(app);
    t.after(() => node.stop());
    const client = await Client.connect(node.url);
    t.after(() => client.stop());
    await client.request("HelloWorldVM");
    await client.value("HelloWorldVM", "FullName");
    await app.kill();

    // It waits in a bounded queue with a deadline, then there is an error `Response_VM`; or the client is told to come
    // back later. Silence would be wrong.
    const from = client.responses.length;
    client.update("HelloWorldVM", { FirstName: "Anybody" }).catch(() => {});
    await until(
      "an answer",
      () => client.closed || client.responses.slice(from).some(({ data }) => "ExceptionType" in data && "Message" in data),
      30_000,
    );
  });

  test("server pings keep an idle client that hears nothing else", async (t) => {
    const app = await App.start();
    t.after(() => app.stop());
    const node = direct ? aliasOf(app) : await Node.start(app, { flags: ["--keep-alive-interval", "500ms"] });
    t.after(() => node.stop());

    const raw = await Raw.connect(node.url);
    t.after(() => raw.stop());
    const client = await Client.connect(node.url);
    t.after(() => client.stop());
    if (!direct) {
      // Were there no pings, the client would have given up long before the tenth.
      client.connection.serverTimeoutInMilliseconds = 2_500;
    }
    await client.connection.invoke("Dispose_VM", "Nothing");
    const pings = () => raw.records.filter(({ type }) => type === 6).length;
    await until("pings", () => pings() >= (direct ? 1 : 10), 30_000);
    assert.equal(client.closed, undefined, String(client.closed?.error));
    assert.equal(client.connection.state, HubConnectionState.Connected);
    assert.equal(raw.closed, undefined);
    assert.equal(raw.responses.length, 0);
  });
});
