import { chromium } from "playwright-core";
import { scratch } from "./processes.mjs";

// Without these, Chromium's own services knock at hosts that a closed network does not have.
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** A browser with a profile of its own, which outlives it. The caller closes it. */
export function launch(options = {}) {
  return chromium.launchPersistentContext(scratch(), { executablePath: process.env.CHROMIUM, headless: true, args: QUIET, ...options });
}
