// Where a node can listen: IPv6, a Unix socket, and several places at once.

import assert from "node:assert/strict";
import { existsSync, statSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { Poller, request } from "./lib/polling.mjs";
import { App, Node, scratch } from "./lib/processes.mjs";
import { Client, Raw } from "./lib/signalr.mjs";

async function served(who, app) {
  who.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
  await who.value("HelloWorldVM", "FullName");
  const [context] = await app.contexts();
  return context.HttpConnection;
}

test("IPv4, IPv6 and a Unix socket of one node, at once", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const socketPath = path.join(scratch(), "node.sock");
  const listen = ["127.0.0.1:0", "[::1]:0", `unix:${socketPath}`, "127.0.0.2:0"];
  const node = await Node.configured(app, { listen });
  t.after(() => node.stop());
  const port = (pattern) => node.listens.map((where) => pattern.exec(where)?.[1]).find(Boolean);
  const v4 = `http://127.0.0.1:${port(/127\.0\.0\.1:(\d+)/)}`;
  const v6 = `http://[::1]:${port(/\[::1\]:(\d+)/)}`;
  const second = `http://127.0.0.2:${port(/127\.0\.0\.2:(\d+)/)}`;
  assert.ok(node.listens.some((where) => where.endsWith(socketPath)), `it says where: ${node.listens}`);

  // The npm client over TCP of both families.
  for (const url of [v4, v6, second]) {
    const client = await Client.connect(url);
    t.after(() => client.stop());
    await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0 } });
    await client.value("HelloWorldVM", "FullName");
    const [{ HttpConnection: seen }] = await app.contexts();
    const { hostname, port } = new URL(url);
    assert.equal(seen.LocalIpAddressString, hostname.replace(/[[\]]/g, ""));
    assert.equal(seen.LocalPort, Number(port));
    if (hostname === "[::1]") assert.equal(seen.RemoteIpAddressString, "::1");
    await client.stop();
    await app.empty();
  }

  // The Unix socket: negotiate, a WebSocket with the token, and without.
  assert.ok(statSync(socketPath).isSocket());
  const negotiated = await request("http://node/dotnetify/negotiate?negotiateVersion=1", { method: "POST", socketPath });
  assert.equal(negotiated.status, 200);
  const { connectionToken } = JSON.parse(negotiated.body);
  for (const id of [connectionToken, undefined]) {
    const raw = await Raw.connect("http://node", { id, socketPath });
    t.after(() => raw.stop());
    const seen = await served(raw, app);
    // Contract 2.3: ports are numbers, and the address is text or null.
    assert.equal(typeof seen.RemotePort, "number");
    assert.ok(seen.RemoteIpAddressString === null || typeof seen.RemoteIpAddressString === "string");
    raw.stop();
    await app.empty();
  }

  await node.stop();
  assert.ok(!existsSync(socketPath), "the socket's file goes with the node");
});

test("long polling over a Unix socket", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const socketPath = path.join(scratch(), "node.sock");
  const node = await Node.configured(app, { listen: [`unix:${socketPath}`] });
  t.after(() => node.stop());
  const poller = await Poller.connect("http://node", { socketPath });
  await poller.hello();
  await poller.stop();
  await app.empty();
});

test("a socket file that a killed node left does not keep the next one from starting", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const socketPath = path.join(scratch(), "node.sock");
  const config = { listen: [`unix:${socketPath}`] };
  const first = await Node.configured(app, config);
  await first.kill();
  assert.ok(existsSync(socketPath));
  const next = await Node.configured(app, config);
  t.after(() => next.stop());
  const raw = await Raw.connect("http://node", { socketPath });
  raw.stop();
});
