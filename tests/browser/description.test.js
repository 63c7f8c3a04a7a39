// The description of the WebSocket protocol is a valid AsyncAPI document.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Parser } from "@asyncapi/parser";
import { broker } from "./harness.js";

test("/asyncapi.json is valid AsyncAPI 3.0", async () => {
  const server = await broker();
  try {
    const answer = await fetch(`${server.url}/asyncapi.json`);
    assert.equal(answer.headers.get("content-type"), "application/json");
    const { document, diagnostics } = await new Parser().parse(await answer.text());
    // The hint at a newer version of AsyncAPI is not an error.
    const faults = diagnostics.filter(({ code }) => code !== "asyncapi-latest-version");
    assert.deepEqual(faults.map(({ path, message }) => `${path.join(".")}: ${message}`), []);
    assert.equal(document.version(), "3.0.0");
    const messages = document.allMessages().all().map((message) => message.name());
    assert.ok(["hello", "send", "welcome", "message"].every((name) => messages.includes(name)), messages.join());
  } finally {
    await server.stop();
  }
});
