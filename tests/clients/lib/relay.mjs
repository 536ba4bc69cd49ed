// A TCP relay between a client and a node: what happens to a connection on the way can be chosen here.

import { once } from "node:events";
import net from "node:net";
import { until } from "./processes.mjs";

export class Relay {
  /** Listens on a port of its own and passes everything on to `port`. */
  static async to(port) {
    const relay = new Relay();
    relay.pairs = new Set();
    relay.requests = [];
    /** Milliseconds that a new connection waits here before it is passed on. */
    relay.delay = 0;
    relay.server = net.createServer((near) => relay.#accept(near, port)).listen(0, "127.0.0.1");
    await once(relay.server, "listening");
    relay.url = `http://127.0.0.1:${relay.server.address().port}`;
    return relay;
  }

  async #accept(near, port) {
    if (this.delay > 0) {
      near.on("error", () => {});
      await new Promise((done) => setTimeout(done, this.delay));
      if (near.destroyed) return;
    }
    const far = net.connect(port, "127.0.0.1");
    const pair = { near, far };
    this.pairs.add(pair);
    for (const [socket, other] of [[near, far], [far, near]]) {
      socket.setNoDelay(true);
      socket.on("error", () => {});
      // What was passed on before the end arrives before it.
      socket.on("close", (failed) => {
        this.pairs.delete(pair);
        if (failed) other.resetAndDestroy();
        else other.end();
      });
    }
    near.on("data", (data) => {
      // Requests begin a segment here: clients write a head at once.
      const [line] = data.toString("latin1").split("\r\n", 1);
      if (/^[A-Z]+ \S+ HTTP\/1\.1$/.test(line)) this.requests.push(line);
      far.write(data);
    });
    far.on("data", (data) => near.write(data));
  }

  /** Ends every connection at once, in both directions and without a goodbye; what is on the way is lost. */
  cut() {
    const { size } = this.pairs;
    for (const { near, far } of [...this.pairs]) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
    return size;
  }

  /** Stops carrying bytes in one direction or both: what is sent meanwhile is lost at the next `cut`. */
  swallow({ toNode = false, toClient = false }) {
    for (const { near, far } of this.pairs) {
      if (toNode) near.removeAllListeners("data").resume();
      if (toClient) far.removeAllListeners("data").resume();
    }
  }

  /** Requests whose line matches, since the beginning. */
  count(pattern) {
    return this.requests.filter((line) => pattern.test(line)).length;
  }

  /** Lets what has been said pass, and then ends. */
  async stop() {
    this.server.close();
    await until("connections to end", () => this.pairs.size === 0, 1_000).catch(() => this.cut());
  }
}
