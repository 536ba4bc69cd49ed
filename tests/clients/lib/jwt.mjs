// Tokens of users (RFC 7519, HS256), written without a library so that they can also be wrong.

import { createHmac } from "node:crypto";

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** Every token that was made, so that a test can look for their traces. */
export const made = [];

/** A signed token. `claims.exp` is an hour from now unless it is there; `exp: undefined` leaves it out. */
export function token(key, claims, header = { alg: "HS256", typ: "JWT" }) {
  const now = Math.floor(Date.now() / 1000);
  const signed = `${part(header)}.${part({ exp: now + 3600, ...claims })}`;
  const text = `${signed}.${createHmac("sha256", key).update(signed).digest("base64url")}`;
  made.push(text);
  return text;
}
