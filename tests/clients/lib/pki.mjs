// Certificates for tests, made by the openssl command.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { scratch } from "./processes.mjs";

const openssl = (...args) => execFileSync("openssl", args, { stdio: ["ignore", "ignore", "pipe"] });

export class Authority {
  constructor(name = "SignalRing test authority") {
    this.folder = scratch();
    // The extensions are those named below and no others: a server's certificate must not be an authority's as well.
    this.config = path.join(this.folder, "openssl.cnf");
    writeFileSync(this.config, "[req]\ndistinguished_name = name\n[name]\n");
    this.ca = path.join(this.folder, "ca.pem");
    this.key = path.join(this.folder, "ca.key");
    this.#make(this.ca, this.key, name, ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"], []);
  }

  /** A certificate for 127.0.0.1, [::1] and localhost, or for a client; `pem` holds both it and its key. */
  issue(name, { client = false } = {}) {
    const [certificate, key] = [path.join(this.folder, `${name}.pem`), path.join(this.folder, `${name}.key`)];
    const extensions = [
      "basicConstraints=critical,CA:FALSE",
      `extendedKeyUsage=${client ? "clientAuth" : "serverAuth"}`,
      "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost",
    ];
    this.#make(certificate, key, name, extensions, ["-CA", this.ca, "-CAkey", this.key]);
    const pem = path.join(this.folder, `${name}.both.pem`);
    writeFileSync(pem, readFileSync(certificate, "utf8") + readFileSync(key, "utf8"));
    return { certificate, key, pem };
  }

  #make(certificate, key, name, extensions, signer) {
    openssl(
      ..."req -x509 -new -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:P-256".split(" "),
      ...["-config", this.config, "-subj", `/CN=${name}`, "-keyout", key, "-out", certificate],
      ...extensions.flatMap((extension) => ["-addext", extension]),
      ...signer,
    );
  }
}
