// Drives the live picture in a real browser: `tests/picture.rs` starts two nodes with clients and runs it with node --test.

import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";
import { launch } from "./lib/chromium.mjs";

const { ADMIN: admin, SCREENSHOTS: screenshots } = process.env;
const CLIENTS = Number(process.env.CLIENTS);
/** Of script, for one frame. A frame of 60 a second has 16.7 ms, of which the browser needs its part. */
const STEP_MS_MAX = 8;

test("the picture of two nodes", { timeout: 110_000 }, async (t) => {
  const browser = await launch({ viewport: { width: 1280, height: 900 } });
  t.after(() => browser.close());
  const problems = [];
  const open = async (query = "", { width = 1280, height = 1000, ...media } = {}) => {
    const tab = await browser.newPage();
    tab.setDefaultTimeout(20_000);
    await tab.setViewportSize({ width, height });
    await tab.emulateMedia(media);
    tab.on("pageerror", (error) => problems.push(`${error}`));
    tab.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    // Works offline: nothing but the node itself may be asked.
    tab.on("request", (request) => !request.url().startsWith(admin) && !request.url().startsWith("data:") && problems.push(`asks ${request.url()}`));
    await tab.goto(`${admin}/picture${query}`);
    await both(tab);
    return tab;
  };
  // On a busy machine a node may miss its second, and is away until the next.
  const both = (tab) => tab.waitForFunction(() => document.querySelector("#nodes").textContent === "2 of 3");
  const atRest = (tab) => tab.waitForFunction(() => globalThis.picture.graph.isAtRest(), null, { timeout: 40_000 });
  const text = (tab, selector) => tab.textContent(selector);
  // Not the full page: the browser would make room for it by another size of the stage.
  const photograph = (tab, name) => tab.screenshot({ path: path.join(screenshots, `${name}.png`) });
  /** Frames a second, and script time for each, over some seconds from now. */
  const frames = async (tab, ms) => {
    const counted = await tab.evaluate(async (ms) => {
      const { graph } = globalThis.picture;
      graph.times = { frames: 0, steps: 0, draw: 0, worst: 0 };
      const begun = performance.now();
      await new Promise((done) => setTimeout(done, ms));
      return { ...graph.times, ms: performance.now() - begun };
    }, ms);
    const each = (sum) => (counted.frames ? sum / counted.frames : 0);
    assert.ok(counted.frames > 0, "nothing was drawn");
    return { perSecond: (counted.frames * 1000) / counted.ms, steps: each(counted.steps), draw: each(counted.draw), worst: counted.worst };
  };
  const says = (name, { perSecond, steps, draw, worst }) =>
    t.diagnostic(`${name}: ${perSecond.toFixed(0)} frames a second; script in a frame ${steps.toFixed(2)} ms of steps and ${draw.toFixed(2)} ms of drawing, at worst ${worst.toFixed(1)} ms`);

  const tab = await open();
  const moving = await frames(tab, 2500);
  says("while it finds its places", moving);
  assert.ok(moving.steps < STEP_MS_MAX, `a step takes ${moving.steps} ms`);
  await atRest(tab);
  const lit = await frames(tab, 3000);
  says("at rest, with traffic", lit);
  assert.ok(lit.steps < 0.5, `what rests costs ${lit.steps} ms a frame`);
  assert.ok(lit.draw < STEP_MS_MAX, `drawing takes ${lit.draw} ms`);

  // The figures are those of the nodes.
  await both(tab);
  assert.equal(await text(tab, "#clients"), CLIENTS.toLocaleString("en"));
  assert.equal(await text(tab, "#showing"), "");
  await tab.waitForFunction(() => Number(document.querySelector("#in").textContent.replace(",", "")) > 50);
  await tab.waitForFunction(() => Number(document.querySelector("#out").textContent.replace(",", "")) > 100);
  // The machine's own figures are there once they have been measured.
  await tab.waitForFunction(() => /^[\d.]+ %[\d,]+ MB$/.test([...document.querySelectorAll("#node-table tbody tr:first-child td:is(:nth-child(5), :nth-child(6))")].map((cell) => cell.textContent).join("")));
  await both(tab);
  const rows = await tab.locator("#node-table tbody tr").allTextContents();
  assert.equal(rows.length, 3);
  const counts = await tab.locator("#node-table tbody tr td:nth-child(2)").allTextContents();
  assert.deepEqual(counts, [(CLIENTS * 11 / 20).toLocaleString("en"), (CLIENTS * 9 / 20).toLocaleString("en"), "–"]);
  assert.match(rows[2], /unreachable: cannot connect/);
  assert.equal(await tab.locator("#app-table tbody tr").count(), 1);
  assert.match(await text(tab, "#app-table tbody"), /10 of 10/);
  await tab.locator("#lanes summary").click();
  assert.equal(await tab.locator("#lane-table tbody tr").count(), 10);
  await tab.locator("#lanes summary").click();
  await tab.evaluate(() => scrollTo(0, 0));
  await photograph(tab, "picture-light");

  // A click on a client shows it.
  await tab.evaluate(() => scrollTo(0, 0));
  const point = await tab.evaluate(() => {
    const { graph } = globalThis.picture;
    const [client] = [...graph.clients.values()].filter((client) => client.seat > 400);
    return { id: client.id, at: graph.where(client.id) };
  });
  const stage = await tab.locator("#lights").boundingBox();
  await tab.mouse.click(stage.x + point.at[0], stage.y + point.at[1]);
  const value = (name) => tab.locator(`#panel dd[data-name="${name}"]`).first();
  await value("id").waitFor();
  const id = await value("id").textContent();
  // Its neighbours are a few pixels away.
  assert.match(id, /^[\w-]{22}$/);
  assert.match(await value("address").textContent(), /^127\.0\.0\.1:\d+$/);
  assert.equal(await value("transport").textContent(), "WebSockets");
  assert.equal(await value("protocol").textContent(), "json");
  assert.match(await value("user agent").textContent(), /^Mozilla\/5\.0 \("quoted" & é\)$/);
  assert.match(await value("view models").textContent(), /^(HelloWorldVM|ChatRoomVM)$/);
  assert.match(await value("url").textContent(), /^http:\/\/127\.0\.0\.1:\d+$/);
  // Twice asked, it has rates.
  await tab.waitForFunction(() => /\/s\)?$/.test(document.querySelector('#panel dd[data-name="to it"]')?.textContent ?? ""));
  await photograph(tab, "picture-client");
  await tab.keyboard.press("Escape");
  assert.equal(await tab.isVisible("#panel"), false);

  // So does its id.
  await tab.fill("#id", id.slice(0, 10));
  assert.match(await text(tab, "#found"), /^\d+ shown$/);
  await tab.fill("#id", id);
  assert.equal(await text(tab, "#found"), "1 shown");
  await tab.keyboard.press("Enter");
  await value("id").waitFor();
  assert.equal(await value("id").textContent(), id);
  // And the keyboard goes on to the next.
  await tab.locator("#lights").press("n");
  await tab.waitForFunction((id) => document.querySelector('#panel dd[data-name="id"]')?.textContent.length === 22 && document.querySelector('#panel dd[data-name="id"]').textContent !== id, id);
  await tab.locator("#panel-close").click();
  // A node shows itself, too.
  await tab.evaluate(() => globalThis.picture.graph.showAll());
  await tab.close();

  // A sample says that it is one.
  const few = await open("?clients=300");
  assert.match(await text(few, "#showing"), new RegExp(`^showing (29\\d|300) of ${CLIENTS.toLocaleString("en")} clients$`));
  assert.equal(await text(few, "#clients"), CLIENTS.toLocaleString("en"));
  await few.close();

  const dark = await open("", { colorScheme: "dark" });
  await atRest(dark);
  await dark.waitForTimeout(1200);
  await photograph(dark, "picture-dark");
  await dark.close();

  const phone = await open("", { width: 390, height: 844 });
  await atRest(phone);
  await phone.waitForTimeout(1200);
  const overflow = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `it is ${overflow} pixels too wide for a phone`);
  await photograph(phone, "picture-phone");
  await phone.locator("#node-table").scrollIntoViewIfNeeded();
  await photograph(phone, "picture-phone-table");
  await phone.close();

  // Without motion everything is in its place at once, and nothing is drawn but for a new picture.
  const calm = await open("?embed=1", { width: 900, height: 600, reducedMotion: "reduce" });
  assert.equal(await calm.evaluate(() => globalThis.picture.graph.isAtRest()), true);
  const still = await frames(calm, 3000);
  says("without motion", still);
  assert.ok(still.perSecond < 10, `${still.perSecond} frames a second`);
  assert.equal(await calm.isVisible("#node-table"), false);
  await photograph(calm, "picture-embed");
  assert.deepEqual(problems, []);
});
