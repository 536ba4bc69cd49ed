// Long polling by hand, over any kind of socket that `http.request` can be given: a client address, a Unix socket, TLS.

import http from "node:http";
import https from "node:https";
import { RECORD_END } from "./signalr.mjs";
import { until } from "./processes.mjs";

/** One request; `options` go to `http.request`, so they may hold `localAddress`, `socketPath`, `ca`, `headers`. */
export function request(url, { method = "GET", body, timeout = 100_000, ...options } = {}) {
  const { protocol } = new URL(url);
  return new Promise((done, failed) => {
    const sent = (protocol === "https:" ? https : http).request(url, { method, agent: false, timeout, ...options }, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("error", failed);
      answer.on("end", () =>
        done({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks).toString("utf8") }),
      );
    });
    sent.on("timeout", () => sent.destroy(new Error(`no answer to ${method} ${url} in ${timeout} ms`)));
    sent.on("error", failed);
    sent.end(body);
  });
}

/** A JSON client over long polling (reference 9): negotiate, an empty first poll, handshake, and polls one after the other. */
export class Poller {
  records = [];

  static async connect(url, options = {}) {
    const poller = new Poller();
    poller.options = options;
    poller.hub = `${url}/dotnetify`;
    const negotiated = await poller.ask(`${poller.hub}/negotiate?negotiateVersion=1`, { method: "POST" });
    poller.token = JSON.parse(negotiated.body).connectionToken;
    poller.hub += `?id=${poller.token}`;
    const first = await poller.ask(poller.hub);
    if (first.body !== "") throw new Error(`the first poll is not empty: ${first.body}`);
    poller.polling = poller.poll();
    await poller.send({ protocol: "json", version: 1 });
    await until("the handshake's answer", () => poller.records.length > 0);
    return poller;
  }

  async ask(url, options = {}) {
    const answer = await request(url, { ...this.options, ...options });
    if (answer.status >= 400) throw new Error(`${options.method ?? "GET"} ${url}: ${answer.status} ${answer.body}`);
    return answer;
  }

  async poll() {
    for (;;) {
      const answer = await this.ask(this.hub);
      // 204 is the end (reference 16.14).
      if (answer.status === 204) return;
      this.records.push(...answer.body.split(RECORD_END).filter(Boolean).map((record) => JSON.parse(record)));
    }
  }

  send(message) {
    return this.ask(this.hub, { method: "POST", body: JSON.stringify(message) + RECORD_END });
  }

  /** Requests HelloWorldVM and waits for its state. */
  async hello() {
    await this.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
    await until("the state of HelloWorldVM", () => this.records.some((record) => record.target === "Response_VM"));
  }

  async stop() {
    await this.ask(this.hub, { method: "DELETE" });
    await this.polling;
  }
}
