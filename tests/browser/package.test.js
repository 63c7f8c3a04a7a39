// The package x0-msg-client: packed, installed into a TypeScript project, type-checked, run in Node, Deno and Bun, bundled.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { broker, shared } from "./harness.js";
import { here, project, run, web } from "./project.js";

const tsc = join(here, "node_modules/typescript/bin/tsc");
const tool = (name) => join(here, "node_modules/.bin", name);

const started = shared(async () => ({ server: await broker(), project: project() }));

test("client.d.ts and react.d.ts are what the comments of client.js and react.js say", () => {
  const out = mkdtempSync(join(tmpdir(), "x0-msg-types-"));
  run("node", [tsc, "-p", "tsconfig.package.json", "--outDir", out], here);
  for (const name of ["client.d.ts", "react.d.ts"]) {
    const [made, kept] = [out, web].map((dir) => readFileSync(join(dir, name), "utf8"));
    assert.equal(kept, made, "make it anew, in tests/browser: npm run declare");
  }
  rmSync(out, { recursive: true });
});

test("the package type-checks in a strict project, and payloads have types", () => {
  const { dir } = started.project;
  writeFileSync(join(dir, "use.ts"), `import { connect, Refused, type Message } from "x0-msg-client";
    type Order = { total: number };
    const client = connect<Order>({
      url: "http://127.0.0.1:1",
      session: "A",
      onMessage: ({ payload, seq }: Message<Order>) => console.log(payload.total, seq),
      onError: (error) => console.error(error instanceof Refused ? error.code : error),
    });
    const sent: Promise<{ id: string; seq?: number }> = client.send({ session: "B" }, { total: 1 });
    const end: () => void = client.subscribe<string>("news", ({ payload }) => console.log(payload.length));
    const price: Promise<number> = client.request<{ price: number }>({ backend: "shop" }, 1, { timeout: 5 }).then(({ payload }) => payload.price);
    connect<Order>({ session: "B", onMessage: (message) => message.reply?.({ price: message.payload.total }) });
    // @ts-expect-error: payloads of this client are orders
    connect<Order>({ session: "A", onMessage: ({ payload }) => payload.nothing });
    // @ts-expect-error: an address names a session, a user or a topic
    client.send({ nobody: "x" }, 1);
    void sent, end, price;
  `);
  const flags = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext", "--lib", "es2022,dom"];
  run("node", [tsc, ...flags, "use.ts"], dir);
});

/** Sends to itself over each transport; prints what came over which. An argument names a package with a WebSocket class. */
const PROGRAM = `import { connect } from "x0-msg-client";
  const [url, session, classes] = process.argv.slice(2);
  try { connect({ session }); } catch ({ message }) { console.log(message); }
  const { WebSocket } = classes ? await import(classes) : {};
  for (const transport of ["auto", "poll"]) {
    let told;
    const came = new Promise((done) => (told = done));
    const client = connect({ url, session, transport, WebSocket, onMessage: ({ payload }) => void told([payload, client.status.transport]) });
    await client.send({ session }, "to " + transport);
    console.log(JSON.stringify(await came));
    await new Promise((done) => setTimeout(done));
    await client.flush();
    client.close();
  }
`;

/** Runs it; checks what it printed. `native`: whether there is a WebSocket. */
function runProgram(program, args, native, ...rest) {
  const { project: { dir }, server } = started;
  writeFileSync(join(dir, "run.js"), PROGRAM);
  const [refused, first, second] = run(program, [...args, "run.js", server.url, `on-${++number}`, ...rest], dir).trim().split("\n");
  assert.match(refused, /needs the `url` of the broker/);
  assert.deepEqual(JSON.parse(first), ["to auto", native ? "websocket" : "poll"]);
  assert.deepEqual(JSON.parse(second), ["to poll", "poll"]);
}
let number = 0;

test("the package runs in Node, over polls where there is no WebSocket", () => {
  runProgram("node", [], process.versions.node.split(".")[0] >= "22");
});

test("the package runs in Node with the WebSocket class of ws", () => {
  started.project.link("ws");
  runProgram("node", [], true, "ws");
});

test("the package runs in Deno", () => runProgram(tool("deno"), ["run", "--quiet", "--allow-all", "--no-lock", "--node-modules-dir=manual"], true));

test("the package runs in Bun", () => runProgram(tool("bun"), [], true));

test("the package is bundled by esbuild, below 12 KB minified and gzipped, and says that it needs a url", () => {
  const { dir } = started.project;
  mkdirSync(join(dir, "out"));
  writeFileSync(join(dir, "page.js"), 'import { connect } from "x0-msg-client"; try { connect({ session: "A" }); } catch (error) { console.log(error.message); }');
  for (const format of ["esm", "iife"]) {
    const out = join(dir, `out/${format}.js`);
    run(tool("esbuild"), ["page.js", "--bundle", "--minify", `--format=${format}`, `--outfile=${out}`, "--log-level=error"], dir);
    assert.match(run("node", [out], dir), /needs the `url` of the broker/, format);
  }
  const [source, bundle] = [readFileSync(join(web, "client.js")), readFileSync(join(dir, "out/esm.js"))];
  const size = gzipSync(bundle).length;
  console.log(`client.js: ${gzipSync(source).length} bytes gzipped with its comments, ${size} minified and gzipped`);
  assert.ok(size < 12_000, `${size} bytes`);
});

test("the broker serves the types and not the package", async () => {
  const types = await fetch(`${started.server.url}/client.d.ts`);
  assert.equal(types.status, 200);
  assert.equal(await types.text(), readFileSync(join(web, "client.d.ts"), "utf8"));
  for (const name of ["package.json", "react.js"]) assert.equal((await fetch(`${started.server.url}/${name}`)).status, 404);
});
