// TLS on both sides of a node, spoken by openssl, by the npm client and by HAProxy.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import tls from "node:tls";
import { fileURLToPath } from "node:url";
import { HAProxy } from "./lib/haproxy.mjs";
import { ROWS, walk } from "./lib/matrix.mjs";
import { Authority } from "./lib/pki.mjs";
import { request } from "./lib/polling.mjs";
import { App, Node, scratch, until, within } from "./lib/processes.mjs";
import { Raw } from "./lib/signalr.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const authority = new Authority();
const ca = readFileSync(authority.ca);
const [FIRST] = ROWS;

/** Runs a command to its end, with `input`, and returns its exit code and all that it printed. */
async function run(command, args, { input = "", env = {} } = {}) {
  const child = spawn(command, args, { env: { ...process.env, ...env } });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  const code = await within(`${command} to end`, new Promise((done) => child.once("close", done)), 60_000);
  return { code, output };
}

describe("TLS towards clients", () => {
  let app, node, files;
  before(async () => {
    app = await App.start();
    const folder = scratch();
    files = { certificate: path.join(folder, "certificate.pem"), key: path.join(folder, "key.pem") };
    install(authority.issue("first"));
    node = await Node.configured(app, {
      listen: ["https://127.0.0.1:0", "127.0.0.1:0"],
      tls: { certificate_file: files.certificate, key_file: files.key },
    });
  });
  after(async () => {
    await node?.stop();
    await app?.stop();
  });
  const install = ({ certificate, key }) => {
    copyFileSync(certificate, files.certificate);
    copyFileSync(key, files.key);
  };
  const sClient = (args, input) =>
    run("openssl", ["s_client", "-connect", `127.0.0.1:${node.port}`, "-CAfile", authority.ca, "-verify_return_error", ...args], { input });
  const peer = () =>
    new Promise((done, failed) => {
      const socket = tls.connect({ port: node.port, host: "127.0.0.1", ca }, () => {
        done(socket.getPeerCertificate());
        socket.end();
      });
      socket.on("error", failed);
    });

  for (const [version, says] of [["-tls1_2", "TLSv1.2"], ["-tls1_3", "TLSv1.3"]]) {
    test(`openssl s_client ${version}: verified, ALPN, and a request`, async () => {
      const negotiate = "POST /dotnetify/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
      const { output } = await sClient([version, "-alpn", "h2,http/1.1", "-servername", "localhost", "-ign_eof"], negotiate);
      assert.match(output, /Verify return code: 0 \(ok\)/);
      assert.match(output, new RegExp(`New, ${says.replace(".", "\\.")}`));
      assert.match(output, /ALPN protocol: http\/1\.1/);
      assert.match(output, /HTTP\/1\.1 200 OK/);
      assert.match(output, /"connectionToken":"/);
    });
  }

  test("openssl s_client: no ALPN works; an older version and ALPN without http/1.1 are refused", async () => {
    const plain = await sClient([]);
    assert.match(plain.output, /Verify return code: 0 \(ok\)/);
    assert.match(plain.output, /No ALPN negotiated/);
    for (const args of [["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], ["-alpn", "h2"]]) {
      const { code, output } = await sClient(args);
      // RFC 7301 section 3.2: a server that supports none of the protocols offered answers with an alert.
      assert.notEqual(code, 0, `${args}: ${output}`);
      assert.match(output, /alert/);
    }
    // Bytes that are no TLS do no harm.
    await assert.rejects(request(`http://127.0.0.1:${node.port}/dotnetify/negotiate`, { method: "POST", timeout: 10_000 }));
    assert.equal((await fetch(`${node.admin}/health`)).status, 200);
  });

  test("the npm client over https and wss, every transport", async () => {
    const args = [path.join(here, "tls-rows.mjs"), node.url, app.url];
    const { code, output } = await run(process.execPath, args, { env: { NODE_EXTRA_CA_CERTS: authority.ca, NODE_TEST_CONTEXT: "" } });
    assert.equal(code, 0, output);
    assert.equal(output.match(/over TLS/g).length, 7, output);
    console.log(output);
    // Without the authority there is no connection: it is not that nobody looked.
    const stranger = await run(process.execPath, args, { env: { NODE_TEST_CONTEXT: "" } });
    assert.notEqual(stranger.code, 0);
    assert.match(stranger.output, /fetch failed|certificate/);
  });

  test("pages of the node's own name may connect if they came over TLS as well", async (t) => {
    const page = (scheme) => ({ ca, headers: { Origin: `${scheme}://127.0.0.1:${node.port}` } });
    const raw = await Raw.connect(node.url, page("https"));
    t.after(() => raw.stop());
    await assert.rejects(Raw.open(node.url, page("http")), /403/);
  });

  test("a new certificate is served after SIGHUP, and nobody is disconnected", async (t) => {
    const raw = await Raw.connect(node.url, { ca });
    t.after(() => raw.stop());
    const before = await peer();
    assert.equal(before.subject.CN, "first");

    install(authority.issue("second"));
    assert.equal((await peer()).subject.CN, "first", "not before the signal");
    node.child.kill("SIGHUP");
    await until("the new certificate", async () => (await peer()).subject.CN === "second");

    // What cannot be used is refused, and the old one stays.
    writeFileSync(files.certificate, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n");
    const printed = node.output.length;
    node.child.kill("SIGHUP");
    await until("the log to say so", () => /certificate/i.test(node.output.slice(printed)));
    assert.equal((await peer()).subject.CN, "second");
    // A key that is not the certificate's.
    install(authority.issue("third"));
    copyFileSync(authority.issue("other").key, files.key);
    const again = node.output.length;
    node.child.kill("SIGHUP");
    await until("the log to say so", () => /certificate|key/i.test(node.output.slice(again)));
    assert.equal((await peer()).subject.CN, "second");

    assert.equal(raw.closed, undefined);
    raw.send({ type: 1, target: "Request_VM", arguments: ["HelloWorldVM", { $vmArg: { TickInterval: 0 } }] });
    await raw.value("HelloWorldVM", "FullName");
    assert.equal(node.over, undefined);
  });
});

describe("TLS towards the app server", () => {
  let app, haproxy;
  const nodeWith = (t, upstream, options) => {
    const started = Node.configured(app, { upstream }, options);
    t.after(async () => (await started.catch(() => undefined))?.stop());
    return started;
  };
  const url = (frontend) => `https://127.0.0.1:${haproxy.ports[frontend]}`;
  before(async () => {
    app = await App.start();
    const { pem } = authority.issue("app-server");
    haproxy = await HAProxy.start(
      ["any", "known"],
      (ports) => `
frontend any
  bind 127.0.0.1:${ports.any} ssl crt ${pem} alpn http/1.1
  default_backend app
frontend known
  bind 127.0.0.1:${ports.known} ssl crt ${pem} alpn http/1.1 ca-file ${authority.ca} verify required
  default_backend app
backend app
  server app 127.0.0.1:${app.port}
`,
    );
  });
  after(async () => {
    await haproxy?.stop();
    await app?.stop();
  });

  test("lanes over https, to a server of an authority of its own", async (t) => {
    const node = await nodeWith(t, { url: url("any"), ca_file: authority.ca });
    await walk(FIRST, { app, url: node.url });
  });

  test("lanes over https that show a certificate", async (t) => {
    const { certificate, key } = authority.issue("node", { client: true });
    const upstream = { url: url("known"), ca_file: authority.ca, client_certificate_file: certificate, client_key_file: key };
    const node = await nodeWith(t, upstream);
    await walk(FIRST, { app, url: node.url });
  });

  const stranger = new Authority("somebody else");
  const wrong = {
    "an authority that is not trusted": () => ({ url: url("any") }),
    "another authority than the one given": () => ({ url: url("any"), ca_file: stranger.ca }),
    "no certificate where one is required": () => ({ url: url("known"), ca_file: authority.ca }),
    "a certificate of somebody else where one is required": () => {
      const { certificate, key } = stranger.issue("node", { client: true });
      return { url: url("known"), ca_file: authority.ca, client_certificate_file: certificate, client_key_file: key };
    },
  };
  for (const [why, upstream] of Object.entries(wrong)) {
    test(`no lane: ${why}`, async (t) => {
      const node = await nodeWith(t, upstream(), { ready: false });
      await until("the log to say why", () => /certificate/i.test(node.output));
      assert.equal((await fetch(`${node.admin}/ready`)).status, 503);
      assert.equal(await node.metric("signalring_lanes", 'state="up"'), 0);
    });
  }
});
