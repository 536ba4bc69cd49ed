// Drives the demo page in a real browser: `tests/browser.rs` runs it with node --test.

import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";
import { launch } from "./lib/chromium.mjs";
import { Demo } from "./lib/processes.mjs";

const screenshots = process.env.SCREENSHOTS;

test("two tabs on two nodes edit, chat, and see each other leave", { timeout: 100_000 }, async (t) => {
  const demo = await Demo.start();
  t.after(() => demo.stop());
  assert.equal(new Set(demo.nodes).size, 2, `a page for each of two nodes is printed: ${demo.output}`);

  const browser = await launch({ viewport: { width: 1100, height: 800 } });
  t.after(() => browser.close());

  const problems = [];
  const open = async (node) => {
    const tab = await browser.newPage();
    tab.setDefaultTimeout(20_000);
    tab.on("pageerror", (error) => problems.push(`${node}: ${error}`));
    tab.on("console", (message) => message.type() === "error" && problems.push(`${node}: ${message.text()}`));
    // Works offline: nothing but the demo's own addresses may be asked for.
    tab.on("request", (request) => {
      const { hostname, protocol } = new URL(request.url());
      if (protocol.startsWith("http") && hostname !== "127.0.0.1" && hostname !== "localhost") problems.push(`asks ${request.url()}`);
    });
    await tab.goto(`${demo.page}?node=${encodeURIComponent(node)}`);
    await says(tab, "#full", /\S/);
    return tab;
  };
  const says = (tab, selector, pattern) =>
    tab.waitForFunction(
      ([selector, source]) => new RegExp(source).test(document.querySelector(selector)?.textContent ?? ""),
      [selector, pattern.source],
    );
  const picture = (tab, name) => tab.screenshot({ path: path.join(screenshots, `${name}.png`), fullPage: true });

  const [near, far] = [await open(demo.nodes[0]), await open(demo.nodes[1])];
  assert.deepEqual([await near.inputValue("#node"), await far.inputValue("#node")], demo.nodes, "each tab is on its own node");
  for (const tab of [near, far]) await says(tab, "#status", /^connected$/);

  // Hello World: what is typed comes back from the app server, and its clock ticks.
  await near.fill("#first", "Ada");
  await near.fill("#last", "Lovelace");
  await near.locator("#last").blur();
  await says(near, "#full", /^Ada Lovelace$/);
  await says(near, "#greetings", /Ada Lovelace/);
  const time = await near.textContent("#time");
  await near.waitForFunction((time) => document.querySelector("#time").textContent !== time, time);
  assert.doesNotMatch(await far.textContent("#full"), /Ada/, "the other tab has its own view model");
  await picture(near, "1-hello");

  // Chat across nodes, with text that must stay text.
  const word = "hello <b>from</b> the other side é😀";
  await near.fill("#chat-input", word);
  await near.click("#chat-send");
  for (const tab of [near, far]) await says(tab, "#chat-log", /hello <b>from<\/b> the other side é😀/);
  assert.equal(await far.locator("#chat-log b", { hasText: "from" }).count(), 0);
  await far.fill("#chat-input", "and back");
  await far.click("#chat-send");
  await says(near, "#chat-log", /and back/);
  await picture(near, "2-near");
  await picture(far, "3-far");

  // A closed tab leaves the room of the other.
  const users = (tab) => tab.locator("#users").evaluate((list) => list.children.length);
  const both = await users(near);
  assert.ok(both >= 2, `both are listed, not ${both}`);
  await far.close();
  await near.waitForFunction((both) => document.querySelector("#users").children.length === both - 1, both);
  await picture(near, "4-left");

  assert.deepEqual(problems, []);
});
