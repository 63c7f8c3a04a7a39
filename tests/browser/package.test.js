// The package x0-msg-client: packed, installed into a TypeScript project, type-checked, run in Node, bundled.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { broker, shared } from "./harness.js";

const here = fileURLToPath(new URL(".", import.meta.url));
const web = fileURLToPath(new URL("../../web", import.meta.url));
const tsc = join(here, "node_modules/typescript/bin/tsc");
const esbuild = join(here, "node_modules/.bin/esbuild");

/** Runs a program; what it printed. */
const run = (program, args, cwd) => execFileSync(program, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });

const started = shared(async () => {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-package-"));
  const tarball = run("npm", ["pack", "--silent", "--pack-destination", dir], web).trim();
  writeFileSync(join(dir, "package.json"), '{"name":"project","private":true,"type":"module"}');
  run("npm", ["install", "--silent", "--no-fund", "--no-audit", "--offline", join(dir, tarball)], dir);
  return { server: await broker(), project: { dir, stop: () => rmSync(dir, { recursive: true, force: true }) } };
});

test("client.d.ts is what the comments of client.js say", () => {
  const out = mkdtempSync(join(tmpdir(), "x0-msg-types-"));
  const flags = ["--allowJs", "--declaration", "--emitDeclarationOnly", "--strict", "--target", "es2022", "--module", "es2022"];
  run("node", [tsc, ...flags, "--moduleResolution", "bundler", "--lib", "es2023,dom,dom.iterable", "--outDir", out, join(web, "client.js")], here);
  const made = readFileSync(join(out, "client.d.ts"), "utf8");
  rmSync(out, { recursive: true });
  assert.equal(readFileSync(join(web, "client.d.ts"), "utf8"), made, `make it anew: node ${tsc} ${flags.join(" ")} … web/client.js`);
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
    // @ts-expect-error: payloads of this client are orders
    connect<Order>({ session: "A", onMessage: ({ payload }) => payload.nothing });
    // @ts-expect-error: an address names a session, a user or a topic
    client.send({ nobody: "x" }, 1);
    void sent, end;
  `);
  const flags = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext", "--lib", "es2022,dom"];
  run("node", [tsc, ...flags, "use.ts"], dir);
});

test("the package runs in Node, over polls where there is no WebSocket", async () => {
  const { dir } = started.project;
  writeFileSync(join(dir, "run.js"), `import { connect } from "x0-msg-client";
    const [url] = process.argv.slice(2);
    try { connect({ session: "A" }); } catch ({ message }) { console.log(message); }
    const client = connect({ url, session: "node", onMessage: ({ payload }) => {
      console.log(JSON.stringify([payload, client.status.transport]));
      setTimeout(() => client.close());
    } });
    await client.send({ session: "node" }, "from node");
  `);
  const [refused, got] = run("node", ["run.js", started.server.url], dir).trim().split("\n");
  assert.match(refused, /needs the `url` of the broker/);
  assert.equal(JSON.parse(got)[0], "from node");
  const native = process.versions.node.split(".")[0] >= "22";
  assert.equal(JSON.parse(got)[1], native ? "websocket" : "poll");
});

test("the package is bundled by esbuild, below 12 KB minified and gzipped, and says that it needs a url", () => {
  const { dir } = started.project;
  mkdirSync(join(dir, "out"));
  writeFileSync(join(dir, "page.js"), 'import { connect } from "x0-msg-client"; try { connect({ session: "A" }); } catch (error) { console.log(error.message); }');
  for (const format of ["esm", "iife"]) {
    const out = join(dir, `out/${format}.js`);
    run(esbuild, ["page.js", "--bundle", "--minify", `--format=${format}`, `--outfile=${out}`, "--log-level=error"], dir);
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
  assert.equal((await fetch(`${started.server.url}/package.json`)).status, 404);
});
