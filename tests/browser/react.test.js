// x0-msg-client in pages that are built with Vite: the module alone, and the React example of web/docs/client.md.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { test } from "node:test";
import { broker, browser, openPage, post, shared } from "./harness.js";
import { liar } from "./liar.js";
import { here, project, run, web } from "./project.js";

const TYPES = { ".html": "text/html", ".js": "text/javascript" };

/** Serves the files of a directory on an origin of its own. */
async function files(dir) {
  const server = createServer(({ url }, response) => {
    const path = join(dir, new URL(url, "http://x").pathname);
    try {
      response.setHeader("content-type", TYPES[extname(path)] ?? "text/plain").end(readFileSync(path));
    } catch {
      response.writeHead(404).end();
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}`, stop: () => (server.closeAllConnections(), server.close()) };
}

const MAIN = `import { createElement, StrictMode } from "react";
  import { createRoot } from "react-dom/client";
  import { Chat } from "./chat.jsx";
  const url = new URLSearchParams(location.search).get("url");
  const root = createRoot(document.body.appendChild(document.createElement("main")));
  window.show = (session) => root.render(createElement(StrictMode, null, createElement(Chat, { url, session, to: "other" })));
  window.unmount = () => root.unmount();
  show("react");
`;

const PLAIN = `import { connect } from "x0-msg-client";
  try { connect({ session: "A" }); } catch ({ message }) { window.refused = message; }
  const url = new URLSearchParams(location.search).get("url");
  window.client = connect({ url, session: "vite", onMessage: ({ payload }) => (window.got = payload) });
  client.send({ session: "vite" }, "from the bundle");
`;

const started = shared(async () => {
  const own = project();
  for (const name of ["react", "react-dom"]) own.link(name);
  const [, example] = readFileSync(join(web, "docs/client.md"), "utf8").match(/```jsx\n([^]*?)```/);
  own.write("src/chat.jsx", example);
  own.write("src/main.jsx", MAIN);
  own.write("src/plain.js", PLAIN);
  for (const [page, script] of [["react", "main.jsx"], ["plain", "plain.js"]]) {
    own.write(`${page}.html`, `<!doctype html><title>${page}</title><body><script type="module" src="/src/${script}"></script></body>`);
  }
  const build = (page, mode) => {
    own.write("vite.config.js", `export default { build: { outDir: "dist-${page}", rollupOptions: { input: "${page}.html" } } }`);
    run(join(here, "node_modules/.bin/vite"), ["build", "--mode", mode, "--logLevel", "warn"], own.dir, { NODE_ENV: mode });
    return files(join(own.dir, `dist-${page}`));
  };
  // Only the development build of React mounts twice in strict mode.
  const [plain, react] = [await build("plain", "production"), await build("react", "development")];
  const server = await broker("127.0.0.1:0", "--allow-origin", plain.url, "--allow-origin", react.url);
  return { own, plain, react, server, proxy: await liar(server.address), chromium: await browser() };
});

test("a production build with Vite runs, and says that it needs a url", async () => {
  const page = await openPage(started.chromium, `${started.plain.url}/plain.html?url=${started.server.url}`);
  await page.waitForFunction(() => window.got === "from the bundle");
  assert.equal(await page.evaluate(() => client.status.transport), "websocket");
  assert.match(await page.evaluate(() => refused), /needs the `url` of the broker/);
  await page.context().close();
});

/** How many sockets read this session. */
async function readers(session) {
  const answer = await (await fetch(`${started.server.url}/v1/sessions/${session}`)).json();
  return answer.connections?.websocket ?? 0;
}

test("the React example receives, sends and reads a topic; strict mode, new handlers and unmounting leave no connection behind", async () => {
  const { proxy, server, chromium, react } = started;
  const page = await openPage(chromium, `${react.url}/react.html?url=${proxy.url}`);
  await page.getByText("online").waitFor();
  assert.equal(proxy.upgrades, 1, "strict mode mounts twice, and connects once");

  // Each line renders anew, with new handlers.
  for (const payload of ["one", "two"]) {
    await post(server, { to: { session: "react" }, payload });
    await page.getByText(`tester: ${payload}`).waitFor();
  }
  await post(server, { to: { topic: "news" }, payload: "three" });
  await page.getByText("tester: three").waitFor();
  await page.getByText("Say hello").click();
  const other = await fetch(`${server.url}/v1/messages?session=other&wait=60`);
  assert.equal((await other.json()).messages[0].payload, "hello");
  assert.deepEqual([proxy.upgrades, await readers("react")], [1, 1]);

  await page.evaluate(() => show("another"));
  await post(server, { to: { session: "another" }, payload: "four" });
  await page.getByText("tester: four").waitFor();
  await post(server, { to: { topic: "news" }, payload: "five" });
  await page.getByText("tester: five").waitFor();
  assert.equal(proxy.upgrades, 2, "a new session is a new connection");
  while ((await readers("react")) > 0);

  await page.evaluate(() => unmount());
  while ((await readers("another")) > 0);
  assert.equal(proxy.upgrades, 2);
  await page.context().close();
});
