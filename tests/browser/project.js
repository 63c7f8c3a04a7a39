// A fresh project with the package x0-msg-client in it.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const here = fileURLToPath(new URL(".", import.meta.url));
export const web = fileURLToPath(new URL("../../web", import.meta.url));

/** Runs a program; what it printed. */
export const run = (program, args, cwd, env = {}) =>
  execFileSync(program, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...env } });

/** Packs the client and installs it into a project. `link` brings a package of these tests there, `write` a file. */
export function project() {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-package-"));
  const write = (name, text) => {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    writeFileSync(join(dir, name), text);
  };
  const tarball = run("npm", ["pack", "--silent", "--pack-destination", dir], web).trim();
  write("package.json", '{"name":"project","private":true,"type":"module"}');
  run("npm", ["install", "--silent", "--no-fund", "--no-audit", "--offline", join(dir, tarball)], dir);
  const link = (name) => symlinkSync(join(here, "node_modules", name), join(dir, "node_modules", name));
  return { dir, write, link, stop: () => rmSync(dir, { recursive: true, force: true }) };
}
