// The processes of `deploy/`, as `deploy/local.sh` starts them on this machine: an app server, two nodes, and HAProxy or nginx with the
// configuration that is shipped. What compose.yaml starts are the same processes, from the same files.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Tab } from "./lib/dotnetify.mjs";
import { messagePackOf, nameOf, ROWS, walk } from "./lib/matrix.mjs";
import { Poller } from "./lib/polling.mjs";
import { App, binary, freePort, Node, Running, until, within } from "./lib/processes.mjs";
import { Client, HttpTransportType, Raw } from "./lib/signalr.mjs";

const SCRIPT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../deploy/local.sh");
/** Where the client connects from, so that it can be told from the balancer. */
const CLIENT = "127.0.0.2";

class Local extends Running {
  static async start(balancer, flags = []) {
    const port = await freePort();
    const local = new Local("local.sh", ["--balancer", balancer, "--listen", `127.0.0.1:${port}`, "--binary", binary, ...flags], SCRIPT);
    await local.line(/Ctrl\+C stops all of it/);
    const row = (name) => new RegExp(`^${name} +(\\S+)(?: .*?admin (\\S+))? .*\\(process (\\d+)\\)$`, "m").exec(local.output);
    local.url = row("balancer")[1];
    local.app = App.at(row("app server")[1]);
    local.nodes = ["node a", "node b"].map((name) => {
      const [, url, admin, process] = row(name);
      return Object.assign(Object.create(Node.prototype), { name, url, admin, port: Number(new URL(url).port), pid: Number(process) });
    });
    local.pids = [...local.output.matchAll(/\(process (\d+)\)$/gm)].map(([, pid]) => Number(pid));
    local.folder = /^logs +(\S+)$/m.exec(local.output)[1];
    return local;
  }

  /** What the app server was told of the port that a client's node listens on, for each client. */
  async ports() {
    return (await this.app.contexts()).map((context) => context.HttpConnection.LocalPort);
  }
}

/** A process that is gone, or that only waits for its parent to notice. */
function gone(pid) {
  try {
    return /^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "latin1"));
  } catch {
    return true;
  }
}

for (const [balancer, flags, lanes] of [
  ["haproxy", [], "JSON"],
  ["nginx", ["--message-pack"], "MessagePack"],
]) {
  describe(`deploy/local.sh with ${balancer} and lanes in ${lanes}`, () => {
    let local;
    before(async () => {
      local = await Local.start(balancer, flags);
    });
    after(() => local?.stop());
    const open = [];
    afterEach(async () => {
      for (const who of open.splice(0)) await who.stop();
    });

    const elsewhere = [];
    for (const row of ROWS) {
      test(nameOf(row), async () => {
        const look = async ({ connection }) => {
          if (row.transport !== "WebSockets" || row.negotiation === "skip") return;
          const { transport } = connection.connection;
          const { url } = transport._webSocket ?? transport.webSocket;
          const [, name] = /[?&]id=([ab])\./.exec(url) ?? assert.fail(`no node name in ${url}`);
          elsewhere.push((await local.ports()).some((port) => port !== local.nodes["ab".indexOf(name)].port));
        };
        await walk(row, { app: local.app, url: local.url, look });
      });
    }
    test("WebSockets stick to nothing: some were served by a node that did not issue their token", () => {
      assert.ok(elsewhere.includes(true), JSON.stringify(elsewhere));
    });

    test("both nodes have clients of each transport, and each client its own address", async () => {
      for (const connect of [
        () => Raw.connect(local.url, { localAddress: CLIENT, headers: { "X-Forwarded-For": "192.0.2.1, 127.0.0.1" } }),
        () => Poller.connect(local.url, { localAddress: CLIENT }),
      ]) {
        const clients = [];
        for (let i = 0; i < 6; i += 1) clients.push(await connect());
        for (const client of clients) {
          if (client instanceof Poller) await client.hello();
          else {
            client.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
            await client.value("HelloWorldVM", "FullName");
          }
        }
        const contexts = await local.app.contexts();
        assert.equal(contexts.length, 6);
        assert.deepEqual(
          new Set(contexts.map((context) => context.HttpConnection.RemoteIpAddressString)),
          new Set([CLIENT]),
          "what a client has written itself is not believed",
        );
        assert.deepEqual(new Set(await local.ports()), new Set(local.nodes.map((node) => node.port)));
        for (const client of clients) await client.stop();
        await local.app.empty();
      }
    });

    test("a client that leaves its event stream is gone at once, not at the next ping", async () => {
      const client = await Client.connect(local.url, { transport: HttpTransportType.ServerSentEvents });
      open.push(client);
      await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0 } });
      await client.value("HelloWorldVM", "FullName");
      // No goodbye: stop() would send a DELETE.
      client.connection.connection.transport._eventSource.close();
      await until("the node to notice", async () => (await local.app.double()).bindings === 0, 5_000);
    });

    if (balancer === "haproxy") {
      test("a node that is drained gets no new clients", async () => {
        await order(local, "set server nodes/a state drain");
        const clients = [];
        for (let i = 0; i < 4; i += 1) {
          const client = await Client.connect(local.url);
          clients.push(client);
          open.push(client);
          await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0 } });
          await client.value("HelloWorldVM", "FullName");
        }
        assert.deepEqual(new Set(await local.ports()), new Set([local.nodes[1].port]));
        await order(local, "set server nodes/a state ready");
        for (const client of clients) await client.stop();
        await local.app.empty();
      });
    }

    test("a node is killed: its clients come back through the other", async () => {
      const ways = [
        { transport: HttpTransportType.WebSockets },
        { transport: HttpTransportType.WebSockets, protocol: messagePackOf("msgpack10") },
        { transport: HttpTransportType.WebSockets, skipNegotiation: true },
        { transport: HttpTransportType.ServerSentEvents },
        { transport: HttpTransportType.LongPolling },
        { transport: HttpTransportType.LongPolling, protocol: messagePackOf("msgpack10") },
      ];
      const clients = [];
      for (const way of [...ways, ...ways]) {
        const client = await Client.connect(local.url, { reconnect: true, ...way });
        open.push(client);
        clients.push(client);
        client.returned = 0;
        client.connection.onreconnected(() => (client.returned += 1));
        await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0 } });
        await client.value("HelloWorldVM", "FullName");
      }
      const tabs = [new Tab(local.url), new Tab(local.url)];
      for (const tab of tabs) open.push({ stop: () => tab.close() });
      const hellos = tabs.map((tab) => tab.connect("HelloWorldVM", { vmArg: { TickInterval: 0 } }));
      for (const hello of hellos) await hello.has("its state", (state) => "FullName" in state);

      const [dead, living] = local.nodes;
      const lost = (await local.ports()).filter((port) => port === dead.port).length;
      assert.ok(lost > 0 && lost < clients.length + tabs.length, `${lost} clients on node a`);
      process.kill(dead.pid, "SIGKILL");
      await until(`the living node to have all clients`, async () => (await living.metric("signalring_clients")) >= clients.length + tabs.length);

      for (const [i, client] of clients.entries()) {
        const from = client.responses.length;
        await client.request("EchoVM");
        await client.response(`an answer for client ${i}`, ({ vmId }) => vmId === "EchoVM", from);
      }
      for (const [i, hello] of hellos.entries()) {
        hello.dispatch({ FirstName: `Back${i}`, LastName: "Again" });
        await hello.has("its name", (state) => state.FullName === `Back${i} Again`);
      }
      const returned = clients.reduce((sum, client) => sum + client.returned, 0);
      const again = tabs.filter((tab) => tab.states.includes("disconnected")).length;
      assert.equal(returned + again, lost, "those of the other node have noticed nothing");
    });

    test("on SIGTERM all of it ends", async () => {
      local.child.kill("SIGTERM");
      assert.deepEqual(await within("local.sh to end", local.ended), { code: 0, signal: null });
      assert.deepEqual(local.pids.filter((pid) => !gone(pid)), []);
      assert.throws(() => readFileSync(path.join(local.folder, "app.log")), /ENOENT/);
    });
  });
}

/** An order to the running HAProxy, which answers nothing if it is obeyed. */
async function order(local, text) {
  const socket = net.connect(path.join(local.folder, "control.sock"));
  let answer = "";
  socket.setEncoding("latin1").on("data", (piece) => (answer += piece));
  const ended = new Promise((done, failed) => socket.once("close", done).once("error", failed));
  socket.end(`${text}\n`);
  await within(text, ended);
  assert.equal(answer.trim(), "");
}
