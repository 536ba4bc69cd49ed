// Two nodes behind HAProxy, which sticks nothing to anything: WebSockets go wherever their turn is, Server-Sent Events and long
// polling to the node that their token names. And the client's address behind it, by PROXY protocol and by X-Forwarded-For.

import assert from "node:assert/strict";
import net from "node:net";
import { after, afterEach, before, describe, test } from "node:test";
import { HAProxy } from "./lib/haproxy.mjs";
import { nameOf, ROWS, walk } from "./lib/matrix.mjs";
import { Poller, request } from "./lib/polling.mjs";
import { App, Node, within } from "./lib/processes.mjs";
import { Raw } from "./lib/signalr.mjs";

/** Where the client connects from, so that it can be told from the balancer. */
const CLIENT = "127.0.0.2";

describe("two nodes behind HAProxy", () => {
  let app, nodes, proxied, haproxy;
  const urlOf = (frontend) => `http://127.0.0.1:${haproxy.ports[frontend]}`;

  before(async () => {
    app = await App.start();
    const shared = { token_key: "the same sixteen bytes or more on every node", trusted_proxies: ["127.0.0.1"] };
    nodes = await Promise.all(["a", "b"].map((node_name) => Node.configured(app, { ...shared, node_name })));
    // Connections of trusted proxies to these begin with a PROXY header.
    proxied = await Promise.all(["a", "b"].map((node_name) => Node.configured(app, { ...shared, node_name, proxy_protocol: true })));
    const servers = (nodes, options) =>
      nodes.map((node, i) => `  server ${"ab"[i]} 127.0.0.1:${node.port} ${options}`).join("\n");
    // The rule that the README recommends: a token is `<node_name>.<rest>`.
    const byToken = "  use-server a if { url_param(id) -m beg a. }\n  use-server b if { url_param(id) -m beg b. }";
    haproxy = await HAProxy.start(
      ["turns", "tokens", "proxy2", "forwarded"],
      (ports) => `
frontend turns
  bind 127.0.0.1:${ports.turns}
  default_backend turns
backend turns
  balance roundrobin
${servers(nodes, "")}

frontend tokens
  bind 127.0.0.1:${ports.tokens}
  default_backend tokens
backend tokens
  balance roundrobin
${byToken}
${servers(nodes, "")}

frontend proxy2
  bind 127.0.0.1:${ports.proxy2}
  default_backend proxy2
backend proxy2
  balance roundrobin
${byToken}
${servers(proxied, "send-proxy-v2")}

frontend forwarded
  bind 127.0.0.1:${ports.forwarded}
  option forwardfor
  default_backend forwarded
backend forwarded
  balance roundrobin
${byToken}
${servers(nodes, "")}
`,
    );
  });
  after(async () => {
    await haproxy?.stop();
    await Promise.all([...(nodes ?? []), ...(proxied ?? [])].map((node) => node.stop()));
    await app?.stop();
  });
  const open = [];
  afterEach(async () => {
    for (const who of open.splice(0)) await who.stop();
    await app.empty();
  });

  // Which node a client negotiated with and which one serves it.
  const elsewhere = [];
  for (const row of ROWS.filter(({ transport }) => transport === "WebSockets")) {
    test(`in turns: ${nameOf(row)}`, async () => {
      await walk(row, {
        app,
        url: urlOf("turns"),
        look: async (client) => {
          if (row.negotiation === "skip") return;
          const { url } = client.connection.connection.transport._webSocket ?? client.connection.connection.transport.webSocket;
          const [, name] = /[?&]id=([ab])\./.exec(url) ?? assert.fail(`no node name in ${url}`);
          const served = (await app.contexts()).map((context) => context.HttpConnection.LocalPort);
          elsewhere.push(served.some((port) => port !== nodes["ab".indexOf(name)].port));
        },
      });
    });
  }
  test("some of these were served by a node that did not issue their token", () => {
    assert.ok(elsewhere.includes(true), JSON.stringify(elsewhere));
  });

  test("each node takes its turn", async () => {
    for (const node of nodes) assert.ok((await node.metric("signalring_connections_accepted_total")) > 3);
  });

  for (const row of ROWS.filter(({ transport }) => transport !== "WebSockets")) {
    test(`by the token's node name: ${nameOf(row)}`, async () => {
      // Negotiate takes turns, so that both nodes are named.
      for (let i = 0; i < 2; i += 1) await walk(row, { app, url: urlOf("tokens") });
    });
  }

  test("a token that somebody else signed is refused by both", async () => {
    for (let i = 0; i < 2; i += 1) {
      const negotiated = await request(`${urlOf("turns")}/dotnetify/negotiate?negotiateVersion=1`, { method: "POST" });
      const { connectionToken } = JSON.parse(negotiated.body);
      // Not the last character: some of its bits may mean nothing.
      const other = connectionToken.at(-2) === "A" ? "B" : "A";
      const forged = connectionToken.slice(0, -2) + other + connectionToken.at(-1);
      await assert.rejects(Raw.open(urlOf("turns"), { id: forged }), /404/);
    }
  });

  for (const [frontend, how] of [["proxy2", "PROXY protocol"], ["forwarded", "X-Forwarded-For"]]) {
    test(`the app server sees the client's address: ${how}, WebSocket`, async () => {
      // Both nodes, with and without what a client might pretend. HAProxy passes a client's Forwarded on as it came.
      for (const headers of [
        {},
        {},
        { "X-Forwarded-For": "192.0.2.1" },
        { "X-Forwarded-For": "192.0.2.1, 127.0.0.1" },
        { Forwarded: "for=192.0.2.1" },
      ]) {
        const raw = await Raw.connect(urlOf(frontend), { localAddress: CLIENT, headers });
        open.push(raw);
        raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
        await raw.value("HelloWorldVM", "FullName");
        const [context] = await app.contexts();
        assert.equal(context.HttpConnection.RemoteIpAddressString, CLIENT, JSON.stringify(headers));
        // By PROXY protocol the port is known as well.
        if (frontend === "proxy2") assert.equal(context.HttpConnection.RemotePort, raw.socket._socket.localPort);
        raw.stop();
        await app.empty();
      }
    });

    test(`the app server sees the client's address: ${how}, long polling`, async () => {
      const poller = await Poller.connect(urlOf(frontend), { localAddress: CLIENT });
      await poller.hello();
      const [context] = await app.contexts();
      assert.equal(context.HttpConnection.RemoteIpAddressString, CLIENT);
      await poller.stop();
    });
  }

  test("whoever is not a trusted proxy is not believed", async () => {
    const headers = { "X-Forwarded-For": "192.0.2.1", Forwarded: "for=192.0.2.1" };
    const raw = await Raw.connect(nodes[0].url, { localAddress: "127.0.0.3", headers });
    open.push(raw);
    raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
    await raw.value("HelloWorldVM", "FullName");
    const [context] = await app.contexts();
    assert.equal(context.HttpConnection.RemoteIpAddressString, "127.0.0.3");
    raw.stop();

    // A PROXY header of its own gets it nothing at all.
    const socket = net.connect({ port: proxied[0].port, host: "127.0.0.1", localAddress: "127.0.0.3" });
    let answer = "";
    socket.setEncoding("latin1").on("data", (text) => (answer += text)).on("error", () => {});
    const ended = new Promise((done) => socket.once("close", done));
    socket.write("PROXY TCP4 192.0.2.1 127.0.0.1 1000 80\r\nPOST /dotnetify/negotiate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    await within("the connection to be closed", ended);
    assert.doesNotMatch(answer, /^HTTP\/1\.1 200/);
  });

  test("a trusted proxy that sends no PROXY header where one is due is not served", async () => {
    await assert.rejects(Raw.open(proxied[0].url));
  });
});
