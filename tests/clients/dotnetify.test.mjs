// The npm `dotnetify` 5.4 client with its own SignalR 5 library, through a node to the app server.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { Tab } from "./lib/dotnetify.mjs";
import { Raw } from "./lib/signalr.mjs";
import { until, world } from "./lib/processes.mjs";

/** Contract 5.1, word for word. */
const unknownVm = (vmId) =>
  `[dotNetify] ERROR: '${vmId}' is not a known view model! Its assembly must be registered through VMController.RegisterAssembly.`;

describe("npm dotnetify", () => {
  let app, near, far;
  let stop = async () => {};
  let tabs = [];
  const open = (node, options) => {
    const tab = new Tab(node.url, options);
    tabs.push(tab);
    return tab;
  };

  before(async () => {
    ({ app, nodes: [near, far], stop } = await world({ count: 2 }));
  });
  after(() => stop());
  // Every test starts and ends with an app server that remembers nobody.
  afterEach(async () => {
    await Promise.all(tabs.map((tab) => tab.close()));
    tabs = [];
    await app.empty();
  });

  test("a view model is requested, updated and disposed", async () => {
    const tab = open(near);
    const hello = tab.connect("HelloWorldVM");
    await hello.has("the greeting", (state) => typeof state.Greetings === "string");
    assert.ok(tab.states.includes("connected"), `states: ${tab.states}`);
    assert.equal(typeof hello.state.FullName, "string");

    hello.dispatch({ FirstName: "Ada" });
    await hello.has("FullName to follow FirstName", (state) => /^Ada /.test(state.FullName));
    hello.dispatch({ LastName: "Lovelace" });
    await hello.has("FullName to follow LastName", (state) => state.FullName === "Ada Lovelace");

    await app.settled("one view model", (double) => double.view_models === 1);
    hello.destroy();
    await app.settled("the view model is gone", (double) => double.view_models === 0);
  });

  test("vmArg and headers reach the view model", async () => {
    const vmArg = { FirstName: 'é"<\\', LastName: "😀", TickInterval: 0 };
    const hello = open(near).connect("HelloWorldVM", { vmArg, headers: { Authorization: "Bearer abc" } });
    await hello.has("its state", (state) => state.FullName === `${vmArg.FirstName} ${vmArg.LastName}`);
    // An update that carries nothing but headers changes nothing else.
    hello.dispatch({ $headers: { Authorization: "Bearer new" } });
    hello.dispatch({ LastName: "Z" });
    await hello.has("its name", (state) => state.FullName === `${vmArg.FirstName} Z`);
    assert.deepEqual(hello.exceptions, []);
  });

  test("text of every kind comes back as it went", async () => {
    const hello = open(near).connect("HelloWorldVM");
    await hello.has("its state", (state) => "FullName" in state);
    const name = 'é"\\\u0000\u001e<&>\u2028😀\n';
    hello.dispatch({ FirstName: name, LastName: "x" });
    await hello.has("the name", (state) => state.FullName === `${name} x`);
  });

  test("an unknown view model is an exception with the app server's words", async () => {
    const nobody = open(near).connect("NobodyVM");
    await nobody.has("an exception", (_, component) => component.exceptions.length > 0);
    assert.deepEqual(nobody.exceptions[0], { name: "Exception", message: unknownVm("NobodyVM") });
  });

  test("an exception while creating or updating reaches the view model's handler, and the connection lives on", async () => {
    const tab = open(near);
    const faulty = tab.connect("FaultyVM", { vmArg: { ExceptionType: "ArgumentException", Message: 'no "é"' } });
    await faulty.has("an exception", (_, component) => component.exceptions.length > 0);
    assert.deepEqual(faulty.exceptions, [{ name: "ArgumentException", message: 'no "é"' }]);

    const hello = tab.connect("HelloWorldVM");
    await hello.has("its state", (state) => "FullName" in state);
    hello.dispatch({ Throw: "not you" });
    await hello.has("an exception", (_, component) => component.exceptions.length > 0);
    assert.deepEqual(hello.exceptions, [{ name: "UnauthorizedAccessException", message: "not you" }]);
    hello.dispatch({ FirstName: "Still", LastName: "alive" });
    await hello.has("its name", (state) => state.FullName === "Still alive");
    assert.ok(!tab.states.includes("disconnected"), `states: ${tab.states}`);
  });

  test("several view models of one tab, one of them broken, do not disturb each other", async () => {
    const tab = open(near);
    const broken = tab.connect("FaultyVM");
    const hello = tab.connect("HelloWorldVM");
    const instance = tab.connect("HelloWorldVM$second");
    await hello.has("its state", (state) => "FullName" in state);
    await instance.has("its state", (state) => "FullName" in state);
    await broken.has("an exception", (_, component) => component.exceptions.length > 0);
    instance.dispatch({ FirstName: "Second", LastName: "One" });
    await instance.has("its name", (state) => state.FullName === "Second One");
    assert.notEqual(hello.state.FullName, "Second One");
  });

  test("skipNegotiation works by the name serverSentEvents, which the package takes for WebSockets", async () => {
    const tab = open(near, { transport: ["serverSentEvents"], skipNegotiation: true });
    const hello = tab.connect("HelloWorldVM");
    await hello.has("its state", (state) => "FullName" in state);
  });

  test("a chat room spans nodes, and a leaver is seen by the other", async () => {
    const [ada, bob] = [open(near), open(far)];
    const [atAda, atBob] = ["ada", "bob"].map((id, i) =>
      [ada, bob][i].connect("ChatRoomVM", { vmArg: { ChatRoom: "Across", ClientId: id } }),
    );
    for (const room of [atAda, atBob]) await room.has("its state", (_, component) => component.received.length > 0);

    atAda.dispatch({ SendMessage: { MessageId: "m1", SenderId: "ada", Time: new Date().toISOString(), Sequence: 1 } });
    const heard = (id) => (state) => state.Messages?.some((message) => message.MessageId === id);
    await atBob.has("ada's message", heard("m1"));
    await atAda.has("its own message", heard("m1"));
    atBob.dispatch({ SendMessage: { MessageId: "m2", SenderId: "bob", Time: new Date().toISOString(), Sequence: 1 } });
    await atAda.has("bob's message", heard("m2"));

    const users = (...names) => (state) => names.join() === (state.Users ?? []).map((user) => user.Name).join();
    atAda.dispatch({ Name: "Ada" });
    await atBob.has("Ada in the room", users("Ada"));
    atBob.dispatch({ Name: "Bob" });
    for (const room of [atAda, atBob]) await room.has("both users", users("Ada", "Bob"));
    await bob.close();
    await atAda.has("Bob's leaving", users("Ada"));
  });

  test("a response for a view model that the tab does not have is answered by Dispose_VM", async () => {
    // The package answers by itself; nothing may come of it but the view model's end at the app server.
    const tab = open(near);
    const hello = tab.connect("HelloWorldVM");
    await hello.has("its state", (state) => "FullName" in state);
    delete tab.dotnetify.react.viewModels.HelloWorldVM;
    tab.hub.updateVM("HelloWorldVM", { FirstName: "Ghost" });
    await app.settled("the view model is disposed", (double) => double.view_models === 0);
  });

  test("closing a tab without a word disposes its view models", async () => {
    const tab = open(far);
    const hello = tab.connect("HelloWorldVM");
    await hello.has("its state", (state) => "FullName" in state);
    await tab.close();
    await app.empty();
  });

  test("a dropped socket brings the tab back by itself", async () => {
    const tab = open(near);
    const hello = tab.connect("HelloWorldVM", { vmArg: { FirstName: "Remembered" } });
    await hello.has("its state", (state) => "FullName" in state);
    const received = hello.received.length;
    // What a lost network looks like from here: the socket ends and nothing is said.
    tab.hub._connection.connection.transport._webSocket?.terminate?.() ??
      tab.hub._connection.connection.transport.webSocket.terminate();
    await until("the tab to notice", () => tab.states.includes("disconnected"));
    await hello.has("its state again", (_, component) => component.received.length > received);
    assert.equal(hello.state.FullName, "Remembered World");
    await until("the tab to be connected", () => tab.states.at(-1) === "connected");
  });

  test("what the client writes on the wire needs no id", async () => {
    const raw = await Raw.connect(near.url);
    raw.send({ arguments: ["HelloWorldVM", {}], invocationId: "0", target: "Request_VM", type: 1 });
    assert.equal(typeof (await raw.value("HelloWorldVM", "FullName")), "string");
    raw.stop();
  });
});
