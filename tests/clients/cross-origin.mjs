// Pages of another origin in a real browser: `tests/browser.rs` runs this with node --test. The page is served from a port of its own;
// it speaks to the node with fetch, WebSocket and EventSource, all with credentials, as a browser lets it.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { launch } from "./lib/chromium.mjs";
import { App, Node } from "./lib/processes.mjs";

const require = createRequire(import.meta.url);
const script = (folder, file) => readFileSync(path.join(path.dirname(require.resolve(`${folder}/package.json`)), "dist/browser", file));
const FILES = {
  "/signalr.js": script("signalr10", "signalr.js"),
  "/messagepack.js": script("msgpack10", "signalr-protocol-msgpack.js"),
};
const PAGE = '<!doctype html><title>other origin</title><script src="/signalr.js"></script><script src="/messagepack.js"></script>';

const ROWS = [
  { transport: "WebSockets", protocol: "json" },
  { transport: "WebSockets", protocol: "messagepack" },
  { transport: "WebSockets", protocol: "json", skipNegotiation: true },
  { transport: "ServerSentEvents", protocol: "json" },
  { transport: "LongPolling", protocol: "json" },
  { transport: "LongPolling", protocol: "messagepack" },
];

/** Serves the page on a port of its own and returns its origin. */
async function serve() {
  const server = http.createServer((request, response) => {
    const file = FILES[request.url];
    response.setHeader("Content-Type", file ? "text/javascript; charset=utf-8" : "text/html; charset=utf-8");
    response.end(file ?? PAGE);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, port: server.address().port };
}

/** Runs in the page: connects and has a view model say its name. Returns what it said, or why there was no connection. */
async function talk({ url, transport, protocol, skipNegotiation, token }) {
  const { signalR } = window;
  const builder = new signalR.HubConnectionBuilder()
    .withUrl(`${url}/dotnetify`, {
      transport: signalR.HttpTransportType[transport],
      skipNegotiation,
      accessTokenFactory: token && (() => token),
      headers: token && { "X-Own": "header" },
    })
    .configureLogging(signalR.LogLevel.None);
  if (protocol === "messagepack") builder.withHubProtocol(new signalR.protocols.msgpack.MessagePackHubProtocol());
  const connection = builder.build();
  window.connection = connection;
  const said = new Promise((done) => connection.on("Response_VM", ([, data]) => done(JSON.parse(data).FullName)));
  try {
    await connection.start();
  } catch (error) {
    return { refused: String(error) };
  }
  await connection.invoke("Request_VM", "HelloWorldVM", { $vmArg: { FirstName: transport, TickInterval: 0 } });
  return { said: await said, id: connection.connectionId };
}

describe("pages of another origin", () => {
  let app, node, browser, allowed, stranger;
  before(async () => {
    [allowed, stranger] = [await serve(), await serve()];
    app = await App.start();
    // The same page by both of its names; the second is another site than the node's.
    const origins = ["127.0.0.1", "localhost"].map((host) => `http://${host}:${allowed.port}`);
    node = await Node.configured(app, { allowed_origins: origins });
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
    await node?.stop();
    await app?.stop();
    for (const { server } of [allowed, stranger]) server.close();
  });

  async function page(host, { port }) {
    const tab = await browser.newPage();
    tab.setDefaultTimeout(20_000);
    await tab.goto(`http://${host}:${port}/`);
    return tab;
  }

  /** A closed tab is a client that is gone. Only one that polls is waited for, so it says goodbye. */
  async function leave(tab, transport) {
    if (transport === "LongPolling") await tab.evaluate(() => window.connection.stop());
    await tab.close();
  }

  for (const host of ["127.0.0.1", "localhost"]) {
    for (const row of ROWS) {
      const name = `${row.transport}, ${row.protocol}${row.skipNegotiation ? ", skipNegotiation" : ""}`;
      test(`allowed, from ${host}: ${name}`, async () => {
        const tab = await page(host, allowed);
        // Cookies know no ports: the page of the same host can leave one that goes to the node, with credentials only.
        await tab.evaluate(() => {
          document.cookie = "who=me; path=/";
        });
        const answer = await tab.evaluate(talk, { url: node.url, ...row });
        assert.equal(answer.said, `${row.transport} World`, JSON.stringify(answer));
        const [context] = await app.contexts();
        const headers = context.HttpRequestHeaders.AllHeaders;
        assert.deepEqual(headers.Origin, [`http://${host}:${allowed.port}`]);
        if (host === "127.0.0.1") assert.deepEqual(headers.Cookie, ["who=me"]);
        await leave(tab, row.transport);
        await app.empty();
      });
    }
  }

  test("own headers and Authorization need a preflight that allows them", async () => {
    const tab = await page("127.0.0.1", allowed);
    for (const transport of ["WebSockets", "ServerSentEvents", "LongPolling"]) {
      const answer = await tab.evaluate(talk, { url: node.url, transport, protocol: "json", token: "abc" });
      assert.equal(answer.said, `${transport} World`, JSON.stringify(answer));
      await tab.evaluate(() => window.connection.stop());
    }
    await tab.close();
    await app.empty();
  });

  test("an origin that is not allowed gets nothing, whatever it tries", async () => {
    const tab = await page("127.0.0.1", stranger);
    const { invokes } = await app.double();
    for (const row of ROWS) {
      const answer = await tab.evaluate(talk, { url: node.url, ...row });
      assert.ok(answer.refused, `${JSON.stringify(row)}: ${JSON.stringify(answer)}`);
    }
    assert.equal((await app.double()).invokes, invokes, "the app server has seen nothing of it");
    assert.match(node.output, new RegExp(`http://127\\.0\\.0\\.1:${stranger.port}`), "the log names the origin");
    await tab.close();
    await app.empty();
  });
});
