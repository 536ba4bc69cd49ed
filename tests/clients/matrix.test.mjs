// Every version of the SignalR client for JavaScript that is in use, over every transport, protocol and way in that it has:
// first with JSON lanes, then each protocol once with MessagePack lanes.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { connect, nameOf, ROWS, TABLE_HEAD, tableRow, walk } from "./lib/matrix.mjs";
import { App, Node, until, world } from "./lib/processes.mjs";

function table(rows, walkRow) {
  const lines = [];
  for (const row of rows) {
    test(nameOf(row), async () => {
      lines.push(tableRow(row, await walkRow(row)));
    });
  }
  after(() => console.log([TABLE_HEAD, ...lines].join("\n")));
}

describe("JSON lanes", () => {
  let app, near, far;
  let stop = async () => {};
  before(async () => {
    ({ app, nodes: [near, far], stop } = await world({ count: 2, config: {} }));
  });
  after(() => stop());

  table(ROWS, (row) => walk(row, { app, url: near.url, witnessUrl: far.url }));

  test("values of MessagePack that JSON does not have arrive as System.Text.Json writes them", async (t) => {
    // Contract 2.2. Every MessagePack package writes these in its own way.
    for (const row of ROWS) {
      if (row.protocol !== "messagepack" || row.transport !== "WebSockets" || row.negotiation !== "negotiate") continue;
      const client = await connect(row, near.url);
      t.after(() => client.stop());
      await client.request("HelloWorldVM", { $vmArg: { TickInterval: 0, LastName: "." } });
      await client.value("HelloWorldVM", "FullName");
      const values = [
        [1.5, "1.5"],
        [-7, "-7"],
        [2 ** 40, "1099511627776"],
        [true, "true"],
        [null, ""],
        ["é\u001e\0😀", "é\u001e\0😀"],
        [new Uint8Array([0, 255, 16]), "AP8Q"],
        [new Date(Date.UTC(2024, 0, 2, 3, 4, 5)), "2024-01-02T03:04:05Z"],
        [[1, [null, {}]], "[1,[null,{}]]"],
        [{ b: { c: "d" } }, '{"b":{"c":"d"}}'],
      ];
      for (const [value, text] of values) {
        const from = client.responses.length;
        await client.update("HelloWorldVM", { FirstName: value });
        const answer = client.response(`${text} as text`, ({ data }) => data.FullName === `${text} .`, from);
        await answer.catch((error) => assert.fail(`${nameOf(row)}: ${error.message}: ${error.cause?.message}`));
      }
      await client.stop();
    }
    await app.empty();
  });

  test("the lanes were JSON", async () => {
    const double = await app.double();
    assert.ok(double.lanes > 0);
    assert.equal(double.message_pack_lanes, 0);
  });
});

describe("MessagePack lanes", () => {
  let app, near, far;
  let stop = async () => {};
  before(async () => {
    const config = { upstream: { use_message_pack: true } };
    ({ app, nodes: [near, far], stop } = await world({ count: 2, config, messagePack: true }));
  });
  after(() => stop());

  // One row a protocol: the client's side is the same code as above.
  const rows = ROWS.filter(({ folder, transport, negotiation }) =>
    folder === "signalr10" && transport === "WebSockets" && negotiation === "negotiate",
  );
  table(rows, (row) => walk(row, { app, url: near.url, witnessUrl: far.url }));

  test("the lanes were MessagePack", async () => {
    const double = await app.double();
    assert.ok(double.lanes > 0);
    assert.equal(double.message_pack_lanes, double.lanes);
  });
});

test("MessagePack lanes to an app server without MessagePack: the node says so", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const node = await Node.configured(app, { upstream: { use_message_pack: true } }, { ready: false });
  t.after(() => node.stop());
  // What is wrong, and what to do about it.
  await until("the log to name it", () => /does not speak MessagePack.*AddMessagePackProtocol.*use_message_pack/.test(node.output));
  await until("/ready to name it", async () => {
    const answer = await fetch(`${node.admin}/ready`);
    return answer.status === 503 && /messagepack/i.test(await answer.text());
  });
  // A shard publishes its numbers once a turn.
  await until("the metrics to count it", async () => (await node.metric("signalring_lanes", 'state="down"')) > 0);
  assert.equal(await node.metric("signalring_lanes", 'state="up"'), 0);
  assert.equal((await fetch(`${node.admin}/health`)).status, 200, "the node itself is well");
});
