// Who a client is: tokens from `accessTokenFactory` and from `$headers`, what a bad one gets, messages to users, claims at the app
// server, and what happens when a token runs out.

import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { made, token } from "./lib/jwt.mjs";
import { connect, ROWS } from "./lib/matrix.mjs";
import { App, Node, within } from "./lib/processes.mjs";
import { Client, Raw } from "./lib/signalr.mjs";

const KEY = "a signing key of 32 bytes or more, for tests";
const AUDIENCE = "signalring-tests";

const of = (sub, more) => token(KEY, { sub, aud: AUDIENCE, ...more });
const identity = { signing_key: KEY, audience: [AUDIENCE], forward_claims: ["tenant"] };
const alerts = (client) => client.responses.map(({ data }) => data.Alert).filter(Boolean);
const alert = (client, Users, Text) => client.update("UserAlertVM", { Alert: { Users, Text } });

/** Binding of the client that has sent `marker` as its User-Agent. */
async function bindingOf(app, marker) {
  const bindings = await (await fetch(`${app.url}/__double/bindings`)).json();
  return bindings.find(({ last_context }) => JSON.parse(last_context).HttpRequestHeaders.UserAgent === marker);
}

describe("identity", () => {
  let app, nodes;
  const clients = [];
  const open = async (promise) => {
    const client = await promise;
    clients.push(client);
    return client;
  };
  before(async () => {
    app = await App.start();
    const config = { log: "debug", identity: { ...identity, required: "connection" } };
    nodes = await Promise.all([Node.configured(app, config), Node.configured(app, config)]);
  });
  after(async () => {
    await Promise.all((nodes ?? []).map((node) => node.stop()));
    await app?.stop();
  });
  afterEach(async () => {
    await Promise.all(clients.splice(0).map((client) => client.stop()));
    await app.empty();
  });

  test("SendToUsersAsync reaches every connection of a user, whatever it came with, and nobody else's", async () => {
    // Every transport carries the token in its own way (reference 4), and so did every version of the client.
    const rows = ROWS.filter(({ protocol }) => protocol === "json");
    const ada = [];
    for (const [index, row] of rows.entries()) {
      const accessTokenFactory = () => of("ada");
      ada.push(await open(connect(row, nodes[index % 2].url, { accessTokenFactory })));
    }
    // The same claim by the name that .NET writes; and a user whose id holds characters that JSON escapes.
    const bob = await Promise.all(
      nodes.map((node) => open(Client.connect(node.url, { name: "bob", accessTokenFactory: () => of(undefined, { nameid: 'bö"b' }) }))),
    );
    for (const client of [...ada, ...bob]) {
      await client.request("UserAlertVM");
      await client.value("UserAlertVM", "Alert");
    }

    await alert(ada[0], ["ada"], "to ada");
    await alert(bob[0], ["nobody"], "to nobody");
    await alert(ada[1], ['bö"b', "nobody"], "to bob");
    await alert(bob[1], ["ada", 'bö"b', "ada"], "to both");
    const expected = (client) => (ada.includes(client) ? ["to ada", "to both"] : ["to bob", "to both"]);
    for (const client of [...ada, ...bob]) {
      await client.response("to both", ({ data }) => data.Alert === "to both");
    }
    // What was sent before to somebody else would be here by now, and so would a second copy.
    await alert(ada[0], ["ada", 'bö"b'], "last");
    for (const client of [...ada, ...bob]) {
      await client.response("last", ({ data }) => data.Alert === "last");
      // The senders wrote over different lanes, so it is known what came, not in which order.
      assert.deepEqual(alerts(client).sort(), [...expected(client), "last"].sort(), client.name);
    }
  });

  test("a bad token gets 401 and says why, on every way in", async () => {
    const now = Math.floor(Date.now() / 1000);
    const bad = {
      "no token": undefined,
      "no JWT": "abc",
      "another key": token(`${KEY}!`, { sub: "eve", aud: AUDIENCE }),
      "another audience": of("eve", { aud: "somebody else" }),
      "no audience": of("eve", { aud: undefined }),
      expired: of("eve", { exp: now - 3600 }),
      "not yet valid": of("eve", { nbf: now + 3600 }),
      "no expiration": of("eve", { exp: undefined }),
      unsigned: token("", { sub: "eve", aud: AUDIENCE }, { alg: "none" }).replace(/[^.]*$/, ""),
    };
    const { url } = nodes[0];
    const good = { Authorization: `Bearer ${of("ada")}` };
    const started = await fetch(`${url}/dotnetify/negotiate?negotiateVersion=1`, { method: "POST", headers: good });
    const { connectionToken } = await started.json();
    for (const [why, text] of Object.entries(bad)) {
      const headers = text === undefined ? {} : { Authorization: `Bearer ${text}` };
      const negotiated = await fetch(`${url}/dotnetify/negotiate?negotiateVersion=1`, { method: "POST", headers });
      assert.equal(negotiated.status, 401, `negotiate, ${why}`);
      assert.match(negotiated.headers.get("www-authenticate") ?? "", /^Bearer/, why);

      await assert.rejects(Raw.open(url, { headers }), /401/, `WebSocket, ${why}`);
      // Somebody else's connection token does not help: every request is asked who it is.
      for (const [method, accept] of [["GET", "text/event-stream"], ["GET", "*/*"], ["POST", "*/*"], ["DELETE", "*/*"]]) {
        const answer = await fetch(`${url}/dotnetify?id=${connectionToken}`, { method, headers: { ...headers, Accept: accept } });
        assert.equal(answer.status, 401, `${method} ${accept}, ${why}`);
      }
      const factory = text === undefined ? {} : { accessTokenFactory: () => text };
      await assert.rejects(Client.connect(url, factory), /401|Unauthorized/, `npm client, ${why}`);
    }
    // A token in the query counts where a browser cannot send headers, and a good one is good there.
    const raw = await open(Raw.connect(url, { query: `?access_token=${of("ada")}` }));
    assert.equal(raw.error, undefined);
    assert.ok((await nodes[0].metric("signalring_tokens_total", 'result="audience"')) >= 2);
  });

  test("a claim is seen by the app server beside the context", async () => {
    const agent = "claims/1.0";
    const raw = await open(
      Raw.connect(nodes[0].url, { headers: { Authorization: `Bearer ${of("ada", { tenant: 'ä"1', secret: "x" })}`, "User-Agent": agent } }),
    );
    raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", {}] });
    await raw.value("HelloWorldVM", "FullName");
    const binding = await bindingOf(app, agent);
    assert.deepEqual(binding.last_items, { "claim:tenant": 'ä"1' });
  });

  test("nothing of any token is in the log", async () => {
    // The nodes log at debug; every test above has left its traces there, and so does this one.
    const negotiated = await fetch(`${nodes[0].url}/dotnetify/negotiate?negotiateVersion=1`, {
      method: "POST",
      headers: { Authorization: `Bearer ${of("ada")}` },
    });
    const { connectionToken } = await negotiated.json();
    const raw = await open(Raw.connect(nodes[0].url, { query: `?id=${connectionToken}&access_token=${of("ada")}` }));
    raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $headers: { Authorization: `Bearer ${of("ada")}` } }] });
    await raw.value("HelloWorldVM", "FullName");
    raw.stop();
    await app.empty();
    for (const node of nodes) {
      assert.match(node.output, /DEBUG/, "the log is at debug");
      assert.ok(!node.output.includes(connectionToken), "a connection token is logged");
      assert.ok(!node.output.includes(KEY), "the signing key is logged");
      for (const text of made) {
        for (const piece of text.split(".").slice(1).filter(Boolean)) {
          assert.ok(!node.output.includes(piece), `${piece} of a token is logged`);
        }
      }
      assert.doesNotMatch(node.output, /access_token=[^&\s]*[\w-]{8}/);
    }
  });
});

test("a token in $headers counts where only requests need one", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const node = await Node.configured(app, { identity: { ...identity, required: "request" } });
  t.after(() => node.stop());

  const client = await Client.connect(node.url);
  t.after(() => client.stop());
  const refused = async (what, vmArg) => {
    const from = client.responses.length;
    await client.request("UserAlertVM", vmArg);
    const answer = await client.response(what, ({ data }) => "ExceptionType" in data, from);
    assert.equal(answer.data.ExceptionType, "UnauthorizedAccessException", what);
  };
  const headers = (text) => ({ $headers: { Authorization: `Bearer ${text}` } });
  await refused("no token");
  await refused("another key", headers(token(`${KEY}!`, { sub: "ada", aud: AUDIENCE })));
  assert.equal((await app.double()).bindings, 0, "the app server has seen nothing of it");

  const from = client.responses.length;
  await client.request("UserAlertVM", headers(of("ada")));
  await client.value("UserAlertVM", "Alert", from);
  await alert(client, ["ada"], "known");
  await client.response("the alert", ({ data }) => data.Alert === "known");

  // The connection's own token counts as well.
  const other = await Client.connect(node.url, { accessTokenFactory: () => of("bob") });
  t.after(() => other.stop());
  await other.request("UserAlertVM");
  await other.value("UserAlertVM", "Alert");
  await alert(other, ["bob"], "known too");
  await other.response("the alert", ({ data }) => data.Alert === "known too");
  assert.ok(!alerts(client).includes("known too"));
  await Promise.all([client.stop(), other.stop()]);
  await app.empty();
});

test("a token that runs out ends its connection, and the npm client comes back with a new one", async (t) => {
  const app = await App.start();
  t.after(() => app.stop());
  const node = await Node.configured(app, {
    hub: { close_on_authentication_expiration: true },
    identity: { ...identity, clock_skew: "0s", required: "connection" },
  });
  t.after(() => node.stop());
  const short = () => of("ada", { exp: Math.floor(Date.now() / 1000) + 3 });

  const raw = await Raw.connect(node.url, { headers: { Authorization: `Bearer ${short()}` } });
  t.after(() => raw.stop());
  let tokens = 0;
  const accessTokenFactory = () => {
    tokens += 1;
    // The first is short; what comes after it is not, so that the test sees one return.
    return tokens <= 2 ? short() : of("ada");
  };
  const client = await Client.connect(node.url, { accessTokenFactory, reconnect: true });
  t.after(() => client.stop());
  const first = client.connection.connectionId;
  const returned = new Promise((done) => client.connection.onreconnected(done));
  await client.request("HelloWorldVM");
  await client.value("HelloWorldVM", "FullName");

  const close = await raw.record("Close", ({ type }) => type === 7);
  assert.deepEqual(close, { type: 7, allowReconnect: true });
  await raw.end();

  await within("the client to come back", returned);
  assert.notEqual(client.connection.connectionId, first);
  const from = client.responses.length;
  await client.request("HelloWorldVM");
  await client.value("HelloWorldVM", "FullName", from);
  assert.equal(client.closed, undefined);
  await client.stop();
  await app.empty();
});
