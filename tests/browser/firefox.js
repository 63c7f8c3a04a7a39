// Firefox with the parts of Playwright's interface that the tests of client.js use. Playwright itself drives a Firefox of its own only.

import puppeteer from "puppeteer-core";

/** Starts Firefox. */
export async function firefox() {
  const executablePath = process.env.FIREFOX ?? "/usr/bin/firefox-esr";
  const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true });
  return {
    newContext: async () => contextOf(await browser.createBrowserContext()),
    // Firefox may still write to its profile while that is removed.
    close: () => browser.close().catch(() => {}),
  };
}

function contextOf(context) {
  const own = {
    newPage: async () => pageOf(await context.newPage(), own),
    close: () => context.close(),
  };
  return own;
}

/** Firefox reports a connection that fails as an error of the page. */
const CONNECTION = /^(Firefox can.t establish a connection|The connection to ws)/;

/** @param {import("puppeteer-core").Page} page */
function pageOf(page, context) {
  return {
    context: () => context,
    close: () => page.close(),
    on: (event, listener) => page.on(event, (error) => CONNECTION.test(error.message) || listener(error)),
    goto: (url) => page.goto(url),
    setDefaultTimeout: (ms) => page.setDefaultTimeout(ms),
    evaluate: (script, argument) => page.evaluate(script, argument),
    waitForFunction: (script, argument, { timeout } = {}) => page.waitForFunction(script, timeout ? { timeout } : {}, argument),
  };
}
