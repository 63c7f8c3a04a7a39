// The demo page as a user sees it: two tabs exchange a form on every transport, go offline and come back.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, DEADLINE, openPage, proxy, shared, shots } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

/** A tab in a context of its own, as in another window, once it is online. */
async function tab(url = started.server.url, options = {}) {
  const page = await openPage(started.chromium, url, options);
  await page.locator('#status[data-state="online"]').waitFor();
  return page;
}

const sessionOf = (page) => page.locator("#session").textContent();

async function fill(page, { check, text, value, area }) {
  await page.locator("#Form1").setChecked(check);
  await page.locator("#Form2").fill(text);
  await page.locator("#Form3").selectOption(value);
  await page.locator("#Form4").fill(area);
}

async function formIs(page, { check, text, value, area }) {
  await page.waitForFunction(
    ([check, text, value, area]) =>
      document.getElementById("Form1").checked === check &&
      document.getElementById("Form2").value === text &&
      document.getElementById("Form3").value === value &&
      document.getElementById("Form4").value === area,
    [check, text, value, area],
  );
}

/** Chooses a receiver by its session, as a user does by its name. */
async function choose(page, session) {
  await page.locator(`#receivers input[value="${session}"]`).check();
}

async function exchange(a, b, form) {
  await choose(a, await sessionOf(b));
  await fill(a, form);
  await a.locator("#send").click();
  await formIs(b, form);
  await a.locator('#outcome[data-kind="good"]').waitFor();
  await b.locator("#log li.in .done").first().waitFor();
}

async function use(page, transport) {
  await page.locator(`input[name=use][value=${transport}]`).check();
  await page.locator(`#transport[data-transport="${transport}"]`).waitFor();
}

const FORM = { check: true, text: "hello from A", value: "Value2", area: 'line 1\nline 2 äöü € 😀 "quoted" \\ /' };

test("two tabs exchange a form over WebSocket", async () => {
  const [a, b] = await Promise.all([tab(), tab()]);
  assert.equal(await a.locator("#transport").textContent(), "WebSocket");
  await exchange(a, b, FORM);
  await exchange(b, a, { ...FORM, check: false, text: "and back" });
  assert.match(await b.locator("#log li.in").first().textContent(), /seq \d+ · acknowledged/);
  await a.context().close();
  await b.context().close();
});

test("two tabs exchange a form over long-poll, and a mixed pair does too", async () => {
  const [a, b] = await Promise.all([tab(), tab()]);
  await Promise.all([use(a, "poll"), use(b, "poll")]);
  await exchange(a, b, FORM);
  await exchange(b, a, { ...FORM, text: "and back" });
  await use(b, "websocket");
  await exchange(a, b, { ...FORM, text: "mixed" });
  await exchange(b, a, { ...FORM, text: "mixed back" });
  await a.context().close();
  await b.context().close();
});

for (const transport of ["websocket", "poll"]) {
  test(`a tab that was offline gets what it missed, in order, over ${transport}`, async () => {
    const [a, b] = await Promise.all([tab(), tab()]);
    await Promise.all([use(a, transport), use(b, transport)]);
    await choose(a, await sessionOf(b));
    await b.locator("#offline").check({ force: true });
    await b.locator('#status[data-state="offline"]').waitFor();
    for (const text of ["first", "second", "third"]) {
      await fill(a, { ...FORM, text });
      await a.locator("#send").click();
      await a.locator("#log li.out .done").first().waitFor();
      await a.waitForFunction((text) => document.querySelector("#log li.out").textContent.includes(text), text);
    }
    assert.equal(await b.locator("#log li.in").count(), 0);
    await b.locator("#offline").uncheck({ force: true });
    await formIs(b, { ...FORM, text: "third" });
    await b.locator("#log li.in .done").nth(2).waitFor();
    const lines = (await b.locator("#log li.in").allTextContents()).reverse();
    assert.equal(lines.length, 3);
    for (const [at, text] of ["first", "second", "third"].entries()) {
      assert.match(lines[at], new RegExp(`kept while you were away.*${text}.*acknowledged`, "s"));
    }
    await a.context().close();
    await b.context().close();
  });
}

test("tabs see each other come and go", async () => {
  const a = await tab();
  const b = await tab();
  const name = await b.locator("#name").textContent();
  await a.locator("#people li", { hasText: await sessionOf(b) }).waitFor();
  await b.locator("#people li", { hasText: await sessionOf(a) }).waitFor();
  assert.ok(name.length > 3);
  await b.close({ runBeforeUnload: false });
  await a.waitForFunction(() => document.querySelectorAll("#people li").length === 1);
  await a.context().close();
});

test("two tabs of one session both receive, whatever they use", async () => {
  const shared = `${started.server.url}/?session=shared-${Date.now()}`;
  const [a, one, two] = await Promise.all([tab(), tab(shared), tab(shared)]);
  await use(two, "poll");
  await a.locator("#receivers input").first().waitFor();
  await choose(a, await sessionOf(one));
  for (let n = 0; n < 5; n++) {
    const form = { ...FORM, text: `message ${n}` };
    await fill(a, form);
    await a.locator("#send").click();
    await Promise.all([formIs(one, form), formIs(two, form)]);
  }
  for (const page of [a, one, two]) await page.context().close();
});

for (const way of ["refuse", "kill"]) {
  test(`where WebSockets ${way === "refuse" ? "cannot open" : "open and die"}, long-poll takes over and gives way later`, async () => {
    const between = await proxy(started.server);
    between.sockets = way;
    const a = await tab(between.url);
    assert.equal(await a.locator("#transport").textContent(), "Long-poll");
    const b = await tab();
    await a.locator(`#receivers input[value="${await sessionOf(b)}"]`).waitFor();
    await exchange(a, b, FORM);
    await exchange(b, a, { ...FORM, text: "and back" });
    between.sockets = "pass";
    await a.locator('#transport[data-transport="websocket"]').waitFor({ timeout: 2 * DEADLINE });
    await exchange(b, a, { ...FORM, text: "over WebSocket again" });
    assert.equal(await a.locator("#log li.in").count(), 2);
    await a.context().close();
    await b.context().close();
    between.stop();
  });
}

test("the page is readable wide and narrow, light and dark", async () => {
  const other = await tab();
  for (const [width, height] of [[1280, 900], [390, 844]]) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await tab(started.server.url, { viewport: { width, height }, colorScheme });
      await page.locator("#receivers input").first().waitFor();
      await exchange(other, page, FORM);
      await exchange(page, other, { ...FORM, text: "thank you" });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${overflow} pixels too wide at ${width}`);
      await page.screenshot({ path: `${shots}/demo-${width}-${colorScheme}.png`, fullPage: true });
      await page.context().close();
    }
  }
  await other.context().close();
});
