// Drives the demonstration's page in a real browser: `tests/browser.rs` runs it with node --test.

import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";
import { launch } from "./lib/chromium.mjs";
import { Demo } from "./lib/processes.mjs";

const screenshots = process.env.SCREENSHOTS;
const CLIENTS = 200;

test("the demonstration is seen, stopped and started again", { timeout: 110_000 }, async (t) => {
  const demo = await Demo.start(["--clients", String(CLIENTS)]);
  t.after(() => demo.stop());
  const browser = await launch({ viewport: { width: 1440, height: 900 } });
  t.after(() => browser.close());

  const problems = [];
  const open = async ({ width = 1440, height = 900, ...media } = {}) => {
    const tab = await browser.newPage();
    tab.setDefaultTimeout(25_000);
    await tab.setViewportSize({ width, height });
    await tab.emulateMedia(media);
    tab.on("pageerror", (error) => problems.push(`${error}`));
    // What was stopped does not answer: that is seen in the page, and Chromium says it as well.
    tab.on("console", (message) => message.type() === "error" && !/ERR_CONNECTION_(REFUSED|RESET)|ERR_EMPTY_RESPONSE|WebSocket connection/.test(message.text()) && problems.push(message.text()));
    tab.on("request", (request) => {
      const { hostname, protocol } = new URL(request.url());
      if (protocol.startsWith("http") && hostname !== "127.0.0.1") problems.push(`asks ${request.url()}`);
    });
    await tab.goto(demo.url);
    return tab;
  };
  const photograph = (tab, name, fullPage = false) => tab.screenshot({ path: path.join(screenshots, `demo-${name}.png`), fullPage });
  const says = (where, selector, pattern) =>
    where.locator(selector).first().evaluate(
      (element, { source, selector, patience }) => new Promise((done, fail) => {
        const late = performance.now() + patience;
        const look = () => {
          if (new RegExp(source).test(element.textContent)) done();
          else if (performance.now() > late) fail(new Error(`${selector} says "${element.textContent}" and not /${source}/`));
          else setTimeout(look, 50);
        };
        look();
      }),
      { source: pattern.source, selector, patience: 30_000 },
      { timeout: 30_000 },
    );
  const state = (tab, part, word) => says(tab, `#${part} .state`, new RegExp(`^${word}$`));
  const picture = (tab) => tab.frameLocator("#picture iframe");
  const live = (tab, node) => tab.frameLocator(`#live-${node}`);
  const from = (tab) => tab.locator("#picture").getAttribute("data-from");
  const atRest = async (tab) => {
    const frame = await (await tab.locator("#picture iframe").elementHandle()).contentFrame();
    await frame.waitForFunction(() => globalThis.picture?.graph.isAtRest(), null, { timeout: 40_000 });
  };

  const tab = await open();
  for (const part of ["node-1", "node-2", "app"]) await state(tab, part, "running");
  await says(tab, "#active", new RegExp(`^${CLIENTS} of ${CLIENTS}$`));
  // The load's clients, and one of each live page.
  await says(picture(tab), "#clients", new RegExp(`^${CLIENTS + 2}$`));
  await says(picture(tab), "#nodes", /^2$/);
  for (const node of [1, 2]) await says(live(tab, node), "#status", /^connected$/);
  await says(tab, "#p99", /^[\d.,]+$/);
  await says(tab, "#node-1 .detail", /^127\.0\.0\.1:\d+ 100 clients, p99 [\d.,]+ ms$/);
  assert.equal(await from(tab), demo.admins[0]);

  // The two pages are on different nodes and in one room.
  await live(tab, 1).locator("#first").fill("Ada");
  await live(tab, 1).locator("#last").fill("Lovelace");
  await says(live(tab, 1), "#greetings", /Ada Lovelace/);
  await live(tab, 2).locator("#first").fill("Grace");
  await says(live(tab, 2), "#greetings", /Grace/);
  const talk = async (node, text) => {
    await live(tab, node).locator("#chat-input").fill(text);
    await live(tab, node).locator("#chat-send").click();
    for (const each of [1, 2]) await says(live(tab, each), "#chat-log", new RegExp(text));
  };
  await talk(1, "Hello from node 1");
  await talk(2, "Hello, I am on the other node");
  await atRest(tab);
  await tab.waitForTimeout(1500);
  await photograph(tab, "light");

  const others = { dark: { colorScheme: "dark" }, phone: { width: 390, height: 844 }, tablet: { width: 820, height: 1180, colorScheme: "dark" } };
  for (const [name, options] of Object.entries(others)) {
    const other = await open(options);
    await says(picture(other), "#clients", /^20\d$/);
    for (const node of [1, 2]) await says(live(other, node), "#status", /^connected$/);
    await atRest(other);
    const overflow = await other.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${name}: ${overflow} pixels too wide`);
    await photograph(other, name, name !== "dark");
    await other.close();
  }

  // Node 1 goes: the picture comes from the other node, whose clients notice nothing.
  await tab.bringToFront();
  await tab.click("#node-1 button");
  await state(tab, "node-1", "stopped");
  await says(live(tab, 1), "#status", /^reconnecting$/);
  await says(picture(tab), "#nodes", /^1 of 2$/);
  assert.equal(await from(tab), demo.admins[1]);
  await says(tab, "#active", new RegExp(`^${CLIENTS / 2} of ${CLIENTS}$`));
  assert.equal(await live(tab, 2).locator("#status").textContent(), "connected");
  await says(tab, "#lost", new RegExp(`^${CLIENTS / 2}$`));
  await photograph(tab, "node-stopped");

  await tab.click("#node-1 button");
  await state(tab, "node-1", "running");
  await says(live(tab, 1), "#status", /^connected$/);
  await says(tab, "#active", new RegExp(`^${CLIENTS} of ${CLIENTS}$`));
  await says(picture(tab), "#nodes", /^2$/);
  assert.equal(await from(tab), demo.admins[0]);
  await says(live(tab, 1), "#greetings", /Ada Lovelace/);

  // The app server goes: everybody stays, and what is said meanwhile waits.
  await tab.locator("#app button").press("Enter");
  await state(tab, "app", "stopped");
  await live(tab, 1).locator("#chat-input").fill("Said while nobody listened");
  await live(tab, 1).locator("#chat-send").click();
  // The load's messages have waited for as long as they may, and so has this one: a sentence says so, and nobody is cut off.
  await says(live(tab, 1), "#notice", /^ForwardingException: The app server could not be reached/);
  for (const node of [1, 2]) assert.equal(await live(tab, node).locator("#status").textContent(), "connected");
  await says(tab, "#active", new RegExp(`^${CLIENTS} of ${CLIENTS}$`));
  await photograph(tab, "app-server-stopped");
  await live(tab, 2).locator("#chat-input").fill("Is it coming back?");
  await live(tab, 2).locator("#chat-send").click();
  await tab.locator("#app button").press("Enter");
  await state(tab, "app", "running");
  // Nobody asked anew, and everybody is where they were: the latter message arrives behind its room.
  for (const node of [1, 2]) {
    await says(live(tab, node), "#chat-log", /Is it coming back\?/);
    await says(live(tab, node), "#notice", /^$/);
  }
  await says(tab, "#active", new RegExp(`^${CLIENTS} of ${CLIENTS}$`));
  await says(tab, "#lost", new RegExp(`^${CLIENTS / 2}$`));
  await talk(1, "There we are again");

  // The load is changed and ended.
  await tab.fill("#clients", "31");
  await tab.selectOption("#profile", "broadcast");
  await tab.click("#load-start");
  await says(tab, "#active", /^31 of 31$/);
  await says(picture(tab), "#clients", /^33$/);
  await tab.click("#load-stop");
  await says(tab, "#active", /^0$/);
  assert.equal(await tab.textContent("#wrong"), "0", "every message came, once, in order, where it belongs");

  // Who stops both nodes has no picture, and is told so.
  await tab.click("#node-1 button");
  await tab.click("#node-2 button");
  await tab.locator("#no-picture").waitFor();
  assert.deepEqual(problems, []);
});
