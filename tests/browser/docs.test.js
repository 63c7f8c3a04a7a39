// The documentation as a reader uses it: the search finds a page, and every page is readable wide and narrow.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, openPage, shared, shots } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

const open = (path, options = {}) => openPage(started.chromium, started.server.url + path, options);

test("the demo leads to the documentation", async () => {
  const page = await open("/");
  await page.locator('.intro a[href="/docs/"]').click();
  await page.waitForURL(`${started.server.url}/docs/`);
  assert.match(await page.title(), /x0-msg-server/);
  await page.context().close();
});

test("the search finds a section, by pointer and by keyboard", async () => {
  const page = await open("/docs/");
  await page.locator("#query").fill("certificate TLS");
  const first = page.locator("#results a").first();
  await first.waitFor();
  assert.match(await first.textContent(), /Access › TLS/);
  assert.ok((await page.locator("#results mark").count()) > 0);
  await first.click();
  await page.waitForURL(`${started.server.url}/docs/access#tls`);

  await page.keyboard.press("/");
  await page.keyboard.type("4502");
  await page.locator("#results a", { hasText: "Close codes" }).waitFor();
  const options = page.locator("#results [role=option]");
  const count = await options.count();
  assert.ok(count > 1, `${count} results`);
  await page.keyboard.press("ArrowDown");
  assert.equal(await options.nth(1).getAttribute("aria-selected"), "true");
  await page.keyboard.press("ArrowUp");
  const target = await page.locator('#results [aria-selected="true"] a').getAttribute("href");
  await page.keyboard.press("Enter");
  await page.waitForURL(started.server.url + target);

  await page.locator("#query").fill("xyzzy plugh");
  await page.locator("#results .none").waitFor();
  // What a regular expression or HTML would understand is only text.
  await page.locator("#query").fill("(*<b>");
  await page.locator("#results .none").waitFor();
  await page.keyboard.press("Escape");
  assert.ok(await page.locator("#results").isHidden());
  await page.context().close();
});

test("the search finds what readers ask for, in their words", async () => {
  const page = await open("/docs/");
  for (const [words, heading] of [
    ["cors", "Access › Origins"],
    ["install", "Documentation › Install"],
    ["Installing", "Documentation › Install"],
    ["certificates", "Access › TLS"],
    ["how do I publish", "HTTP › Send"],
    ["docker", "Operating › Containers"],
    ["restore a backup", "Storage › Backups"],
  ]) {
    await page.locator("#query").fill(words);
    const results = page.locator("#results b");
    await results.filter({ hasText: heading }).first().waitFor();
    const shown = await results.allTextContents();
    assert.ok(shown.indexOf(heading) < 4, `${words}: ${shown.join(", ")}`);
  }
  await page.context().close();
});

test("the header stays in view and covers no section that a link leads to", async () => {
  const page = await open("/docs/protocol", { viewport: { width: 1280, height: 900 } });
  for (const anchor of ["close-codes", "send", "gaps"]) {
    await page.goto(`${started.server.url}/docs/protocol#${anchor}`);
    const bottom = await page.locator("header.top").evaluate((header) => header.getBoundingClientRect().bottom);
    const top = await page.locator(`#${anchor}`).evaluate((heading) => heading.getBoundingClientRect().top);
    assert.ok(bottom > 40, `the header ends at ${bottom}`);
    assert.ok(top >= bottom, `${anchor} begins at ${top}, under the header, which ends at ${bottom}`);
  }
  await page.locator("#query").click();
  await page.context().close();
});

test("an address without anything leads to the documentation", async () => {
  const page = await open("/docs/nothing");
  await page.locator('main a[href="/docs/"]').click();
  await page.waitForURL(`${started.server.url}/docs/`);
  await page.context().close();
});

test("the table of contents is open where there is room, and leads to its section", async () => {
  const page = await open("/docs/protocol", { viewport: { width: 1280, height: 900 } });
  const link = page.locator(".contents a", { hasText: "Close codes" });
  await link.click();
  await page.waitForURL(`${started.server.url}/docs/protocol#close-codes`);
  await page.setViewportSize({ width: 390, height: 844 });
  await link.waitFor({ state: "hidden" });
  await page.locator(".contents summary").click();
  await link.waitFor();
  await page.context().close();
});

test("every page is readable wide and narrow, light and dark", async () => {
  const index = await open("/docs/");
  const paths = await index.locator(".pages a[href^='/docs/']").evaluateAll((links) => links.map((link) => link.getAttribute("href")));
  await index.context().close();
  assert.ok(paths.length >= 10, paths.join());
  for (const [width, height] of [[1280, 900], [390, 844]]) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await open("/docs/", { viewport: { width, height }, colorScheme });
      for (const path of paths) {
        await page.goto(started.server.url + path);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${path} is ${overflow} pixels too wide at ${width}`);
        const name = path.replace("/docs/", "") || "index";
        await page.screenshot({ path: `${shots}/docs-${name}-${width}-${colorScheme}.png`, fullPage: true });
      }
      await page.locator("#query").fill("epoch");
      await page.locator("#results a").first().waitFor();
      await page.screenshot({ path: `${shots}/docs-search-${width}-${colorScheme}.png` });
      await page.context().close();
    }
  }
});
