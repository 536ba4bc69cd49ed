// Starts the product's own processes for a test, on ports the kernel chose, and never leaves one behind.
//
// BINARY  the `signalring` binary (default: the debug build of this tree)
// TARGET  `node` (default) puts proxy nodes in front of the app server; `direct` points the clients at the app server
//         itself, to tell a fault of the node from a fault of a test

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));

export const binary = process.env.BINARY ?? path.resolve(here, "../../../target/debug/signalring");
export const direct = process.env.TARGET === "direct";

const OUTPUT_KEPT = 4 * 1024 * 1024;

/** How long anything in these tests may take before it counts as lost. Generous: two busy cores. */
export const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 20_000);

const living = new Set();
const folders = [];
process.on("exit", () => {
  for (const child of living) child.kill("SIGKILL");
  for (const folder of folders) rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
});

/** A folder that is gone when the tests are. */
export function scratch() {
  const folder = mkdtempSync(path.join(os.tmpdir(), "signalring-"));
  folders.push(folder);
  return folder;
}

/** Thrown by a probe of `until` that need not be asked again. */
export class Hopeless extends Error {}

/** Calls `probe` until it returns something truthy; fails with `what` when the deadline passes. */
export async function until(what, probe, patience = PATIENCE_MS) {
  const deadline = Date.now() + patience;
  let last;
  for (;;) {
    try {
      const value = await probe();
      if (value) return value;
      last = undefined;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      last = error;
    }
    if (Date.now() > deadline) {
      throw new Error(`waited ${patience} ms for ${what}`, { cause: last });
    }
    await new Promise((done) => setTimeout(done, 10));
  }
}

/** A promise that fails with `what` instead of hanging a test. */
export function within(what, promise, patience = PATIENCE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${patience} ms for ${what}`)), patience);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A port that was free a moment ago, for processes that have to come back on the same one. */
export async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** One running command: `signalring` of this build unless another is named. */
export class Running {
  constructor(name, args, command = binary) {
    this.name = name;
    this.output = "";
    this.child = spawn(command, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: Object.fromEntries(Object.entries(process.env).filter(([key]) => !key.startsWith("SIGNALRING_"))),
    });
    living.add(this.child);
    this.ended = new Promise((done) => {
      this.child.once("error", (error) => {
        this.over = `${this.name} did not start: ${error}`;
        done({ code: null, signal: null, error });
      });
      // `exit` and not `close`: a test must not wait for somebody else who holds the pipe.
      this.child.once("exit", (code, signal) => {
        living.delete(this.child);
        this.over = `${this.name} ended (${signal ?? code})`;
        done({ code, signal });
      });
    });
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (text) => {
        // The last of it tells what happened; the addresses at the start are read at once.
        this.output = (this.output + text).slice(-OUTPUT_KEPT);
      });
    }
  }

  /** Waits for a line of the output and returns its match. */
  async line(pattern) {
    return await until(`${this.name} to print ${pattern}`, () => {
      const found = pattern.exec(this.output);
      if (!found && this.over) throw new Hopeless(this.over);
      return found;
    }).catch((error) => {
      // Nobody will stop what did not start.
      this.child.kill("SIGKILL");
      throw new Error(`${error.message}; it printed:\n${this.output}`, { cause: error });
    });
  }

  /** Pulls the plug. */
  async kill() {
    this.child.kill("SIGKILL");
    await within(`${this.name} to die`, this.ended);
  }

  /** Asks politely, then not. */
  async stop() {
    if (this.over) return;
    this.child.kill("SIGTERM");
    await within(`${this.name} to stop`, this.ended, 15_000).catch(() => this.kill());
  }
}

const LISTENING = /listening on (http:\/\/127\.0\.0\.\d+:(\d+))/;

/** The embedded app server. */
export class App extends Running {
  /** One that another process has started. */
  static at(url) {
    return Object.assign(Object.create(App.prototype), { url });
  }

  static async start({ port = 0, messagePack = false, observer = false, name = observer ? "observer" : "app server" } = {}) {
    const flags = [...(messagePack ? ["--message-pack"] : []), ...(observer ? ["--observer"] : [])];
    const app = new App(name, ["app", "--listen", `127.0.0.1:${port}`, ...flags]);
    const [, url, number] = await app.line(LISTENING);
    app.url = url;
    app.port = Number(number);
    return app;
  }

  /** What the double says about itself, as figures: of a list or a map, how many entries it has. */
  async double() {
    const answer = await fetch(`${this.url}/__double`);
    if (!answer.ok) throw new Error(`/__double answered ${answer.status}`);
    const count = (value) => (value !== null && typeof value === "object" ? Object.keys(value).length : value);
    return Object.fromEntries(Object.entries(await answer.json()).map(([name, value]) => [name, count(value)]));
  }

  /** What an Observer was told. */
  async observed() {
    return await (await fetch(`${this.url}/__double/observer`)).json();
  }

  /** The contexts of all bound clients, oldest binding first, as their latest message brought them. */
  async contexts() {
    const answer = await fetch(`${this.url}/__double/bindings`);
    return (await answer.json()).map((binding) => JSON.parse(binding.last_context));
  }

  /** Waits until it remembers nobody, and checks that nothing went wrong on the way there. */
  async empty() {
    const double = await this.settled(
      "no client is remembered",
      // A lane that has carried nothing yet looks like a direct client.
      ({ bindings, controllers, view_models, direct_clients }) =>
        bindings === 0 && controllers === 0 && view_models === 0 && (!direct || direct_clients === 0),
    );
    for (const loss of ["leaks", "lost_sends", "dropped_updates"]) {
      if (double[loss] !== 0) throw new Error(`the app server counts ${double[loss]} ${loss}: ${JSON.stringify(double)}`);
    }
  }

  /** Waits until the double's figures satisfy `test`. */
  async settled(what, test) {
    let last;
    return await until(`the app server: ${what}`, async () => {
      last = await this.double();
      return test(last) && last;
    }).catch((error) => {
      throw new Error(`${error.message}; /__double said ${JSON.stringify(last)}`, { cause: error });
    });
  }
}

/** A node. */
export class Node extends Running {
  static async start(app, { port = 0, flags = [] } = {}) {
    const addresses = ["--listen", `127.0.0.1:${port}`, "--admin", "127.0.0.1:0", "--app-server", app.url];
    const node = new Node("node", ["run", ...addresses, "--shards", "2", ...flags]);
    const [, url, number] = await node.line(LISTENING);
    node.url = url;
    node.port = Number(number);
    node.admin = (await node.line(/admin on (http:\/\/127\.0\.0\.\d+:\d+)/))[1];
    await node.ready();
    return node;
  }

  /**
   * Starts one by a file. `config` is its content as an object; `listen`, `admin` and the app server's `url` are filled in unless
   * they are there; an `upstream` that is a list is taken as it is. `ready: false` does not wait for its lanes.
   */
  static async configured(app, config = {}, { ready = true } = {}) {
    const { listen = "127.0.0.1:0", upstream = {}, ...rest } = config;
    const file = path.join(scratch(), "node.toml");
    const upstreams = Array.isArray(upstream) ? upstream : [{ url: app.url, ...upstream }];
    const whole = { listen, admin: "127.0.0.1:0", shards: 2, ...rest, upstream: upstreams };
    writeFileSync(file, toml(whole));
    const node = new Node("node", ["run", "--config", file]);
    node.file = file;
    node.admin = (await node.line(/admin on (http:\/\/127\.0\.0\.\d+:\d+)/))[1];
    // What it says it listens on, in the order of the file.
    const count = [listen].flat().length;
    node.listens = await until(`the node to listen on ${count} addresses`, () => {
      const found = [...node.output.matchAll(/listening on (\S+)/g)].map(([, where]) => where);
      return found.length >= count && found;
    }).catch((error) => {
      throw new Error(`${error.message}; it printed:\n${node.output}`, { cause: error });
    });
    node.port = Number(/:(\d+)\/?$/.exec(node.listens[0])?.[1]);
    node.url = `${config.tls ? "https" : "http"}://127.0.0.1:${node.port}`;
    if (ready) await node.ready();
    return node;
  }

  async ready() {
    await until(`${this.name} to be ready`, async () => {
      if (this.over) throw new Hopeless(`${this.over}; it printed:\n${this.output}`);
      return (await fetch(`${this.admin}/ready`)).ok;
    }).catch((error) => {
      this.child.kill("SIGKILL");
      throw new Error(`${error.message}; it printed:\n${this.output}`, { cause: error });
    });
  }

  /** Sum of a metric over the lines that contain `label`. */
  async metric(name, label = "") {
    const text = await (await fetch(`${this.admin}/metrics`)).text();
    const lines = text.split("\n").filter((line) => !line.startsWith("#") && line.includes(label));
    const named = lines.filter((line) => line.split(/[{ ]/, 1)[0] === name);
    return named.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }
}

/** An object as TOML: scalars and lists first, then tables and lists of tables. JSON strings and numbers are TOML's as well. */
export function toml(object) {
  const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const isTables = (value) => Array.isArray(value) && value.length > 0 && value.every(isTable);
  const entries = Object.entries(object);
  const lines = entries
    .filter(([, value]) => !isTable(value) && !isTables(value))
    .map(([name, value]) => `${name} = ${JSON.stringify(value)}`);
  for (const [name, value] of entries) {
    if (isTable(value)) lines.push(`[${name}]`, toml(value));
    if (isTables(value)) for (const table of value) lines.push(`[[${name}]]`, toml(table));
  }
  return lines.join("\n");
}

/** `signalring demo`: an app server, two nodes and the page. */
export class Demo extends Running {
  /** Without load, unless `flags` say otherwise. `url` is where all is shown, `page` the live page, which takes one of `nodes`. */
  static async start(flags = ["--clients", "0"]) {
    const demo = new Demo("demo", ["demo", "--listen", "127.0.0.1:0", ...flags]);
    demo.url = (await demo.line(/Open (http:\/\/\S+)/))[1];
    await demo.line(/Ctrl\+C ends it/);
    demo.admins = [...demo.output.matchAll(/picture (http:\/\/\S+)\/picture/g)].map(([, admin]) => admin);
    const links = [...demo.output.matchAll(/(http:\/\/[^\s?]+)\?node=(\S+)/g)];
    demo.page = links[0][1];
    demo.nodes = links.map(([, , node]) => node);
    return demo;
  }
}

/** An app server and what clients connect to: `count` nodes, or the app server itself, several times. */
export async function world({ count = 1, flags = [], messagePack = false, config } = {}) {
  const app = await App.start({ messagePack });
  const nodes = [];
  const stop = async () => {
    await Promise.all(nodes.map((node) => node.stop()));
    await app.stop();
  };
  try {
    while (nodes.length < count) {
      if (direct) nodes.push(aliasOf(app));
      else nodes.push(config ? await Node.configured(app, config) : await Node.start(app, { flags }));
    }
  } catch (error) {
    await stop();
    throw error;
  }
  return { app, nodes, stop };
}

/** Lets the app server stand where a node is expected. */
export function aliasOf(app) {
  return { url: app.url, port: app.port, stop: async () => {} };
}
