// HAProxy (Debian package haproxy) in front of nodes or of the app server, for as long as a test.

import { once } from "node:events";
import { writeFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { freePort, Hopeless, Running, scratch, until } from "./processes.mjs";

const BEFORE = `
global
  maxconn 500
defaults
  mode http
  timeout connect 5s
  timeout client 120s
  timeout server 120s
  timeout tunnel 120s
  timeout queue 5s
  # Every request is balanced by itself, on a connection of its own: nothing sticks.
  option http-server-close
  http-reuse never
  # A client that leaves an event stream or a poll is gone at once, not at the next ping.
  option abortonclose
`;

export class HAProxy extends Running {
  /** `sections` makes the frontends and backends out of free ports, one for each of `names`; `ports` then has them by name. */
  static async start(names, sections) {
    const ports = {};
    for (const name of names) ports[name] = await freePort();
    const file = path.join(scratch(), "haproxy.cfg");
    writeFileSync(file, `${BEFORE}${sections(ports)}\n`);
    const haproxy = new HAProxy("haproxy", ["-db", "-f", file], process.env.HAPROXY ?? "haproxy");
    haproxy.ports = ports;
    await until("haproxy to listen", async () => {
      if (haproxy.over) throw new Hopeless(haproxy.over);
      await Promise.all(Object.values(ports).map(reachable));
      return true;
    }).catch(async (error) => {
      await haproxy.kill();
      throw new Error(`${error.message}; it printed:\n${haproxy.output}`, { cause: error });
    });
    return haproxy;
  }
}

async function reachable(port) {
  const socket = net.connect(port, "127.0.0.1");
  await once(socket, "connect");
  socket.destroy();
}
