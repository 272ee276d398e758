// @vitest-environment jsdom
/// <reference types="vite/client" />
/** The examples of the doc comments, run as they stand there. */

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { act, cleanup, render } from "@testing-library/react";
import * as React from "react";
import ts from "typescript";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { createApp, defineComponent, h, onScopeDispose, unref } from "vue";
import { Socket } from "../src/index.js";
import * as hooks from "../src/react.js";
import react from "../src/react.ts?raw";
import socket from "../src/socket.ts?raw";
import svelte from "../src/svelte.ts?raw";
import * as composables from "../src/vue.js";
import vue from "../src/vue.ts?raw";
import { FakeWebSocket, token } from "./fake.js";

/** The examples of a module, by what they explain. */
function examples(source: string): Record<string, string> {
  const found = source.matchAll(/ \* @example\n((?: \* .*\n)+?) \*\/\nexport (?:class|function) (\w+)/g);
  return Object.fromEntries([...found].map(([, lines = "", name = ""]) => [name, lines.replaceAll(/^ \* /gm, "")]));
}

/** Compiles lines of TSX, and runs them with these names. */
function run(code: string, names: object): unknown {
  const compilerOptions = { jsx: ts.JsxEmit.React, target: ts.ScriptTarget.ESNext };
  const { outputText } = ts.transpileModule(code, { compilerOptions, fileName: "example.tsx" });
  return new Function(...Object.keys(names), outputText)(...(Object.values(names) as unknown[])) as unknown;
}

const refetch = vi.fn();
const log = vi.fn();
const ana = { user_id: "7", name: "Ana", status: "online", since: "" };
const common = { console: { log }, refetch, token: token(), getToken: () => token(), user: { id: "7" } };
const soon = (): Promise<void> =>
  act(async () => {
    await vi.advanceTimersByTimeAsync(2_000);
  });

beforeEach(() => {
  vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
  vi.stubGlobal("WebSocket", FakeWebSocket);
  vi.clearAllMocks();
  FakeWebSocket.reset();
});

afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

/** Publishes a message and a gap, and returns how the example reported them. */
async function reported(): Promise<unknown[]> {
  FakeWebSocket.last.message("42", "201");
  FakeWebSocket.last.say("room:gap", { room: "thread:42", reason: "lost" });
  await soon();
  return [...log.mock.calls, ...refetch.mock.calls];
}

test("the example of Socket joins a thread, handles events, and sends one", async () => {
  const code = `${examples(socket)["Socket"]}return { socket, leave };`;
  const made = run(code, { ...common, Socket }) as { socket: Socket; leave: () => void };
  await soon();
  expect(made.socket.isIn("thread:42")).toBe(true);
  expect(FakeWebSocket.last.events("presence:away")).toHaveLength(1);
  expect(await reported()).toEqual([["201"], ["thread:42"]]);
  made.leave();
  expect(made.socket.isIn("thread:42")).toBe(false);
  made.socket.disconnect();
});

test("the examples of the hooks work together below the provider of the first one", async () => {
  const { SocketProvider: provider = "", ...others } = examples(react);
  expect(Object.keys(others).sort()).toEqual(Object.keys(hooks).filter((name) => name.startsWith("use")).sort());
  const body = `${Object.values(others).join("")}return { status, joined, members };`;
  let state: unknown;
  const Page = (): null => {
    state = run(body, { ...common, ...hooks });
    return null;
  };
  const page = `return (${provider.trim().replace(/;$/, "").replace("…", "<Page />")});`;
  render(run(page, { ...common, ...hooks, React, Page }) as React.ReactElement);
  await soon();
  FakeWebSocket.last.say("presence:state", { group: "attendants", members: [ana], total: 1, offset: "1" });
  expect(await reported()).toEqual([["thread:42", "201"], ["thread:42"]]);
  expect(state).toEqual({ status: "connected", joined: true, members: [ana] });
});

test("the examples of the composables work together below the component of the first one", async () => {
  const { provideSockets: provider = "", ...others } = examples(vue);
  expect(Object.keys(others).sort()).toEqual(Object.keys(composables).filter((name) => name.startsWith("use")).sort());
  const names = { ...common, ...composables, onScopeDispose };
  let state: object = {};
  const Page = defineComponent(() => {
    state = run(`${Object.values(others).join("")}return { status, joined, members };`, names) as object;
    return () => null;
  });
  const app = createApp(
    defineComponent(() => {
      run(provider, names);
      return () => h(Page);
    }),
  );
  app.mount(document.createElement("div"));
  await soon();
  FakeWebSocket.last.say("presence:state", { group: "attendants", members: [ana], total: 1, offset: "1" });
  expect(await reported()).toEqual([["201"]]);
  expect(Object.values(state).map(unref)).toEqual(["connected", true, [ana]]);
  app.unmount();
  await soon();
  expect(FakeWebSocket.open).toEqual([]);
});

test("the examples of the stores work together in one component", { timeout: 60_000 }, async () => {
  const cache = "node_modules/.cache/examples"; // below the packages that it imports
  mkdirSync(cache, { recursive: true });
  const component = `<script>
    import { onMount } from "svelte";
    import { toStore } from "svelte/store";
    import { ${Object.keys(examples(svelte)).join()} } from "../../../src/svelte.js";
    ${Object.values(examples(svelte)).join("")}
  </script>{$status} {$connected} {$thread.joined} {$members.map(({ name }) => name)}`;
  writeFileSync(`${cache}/Page.svelte`, component);
  writeFileSync(`${cache}/page.js`, 'import * as svelte from "svelte";import Page from "./Page.svelte";start(svelte, Page);');
  execFileSync("node", ["test/pages/build.mjs", `${cache}/page.js`, `${cache}/bundle.js`]);
  let end = (): unknown => undefined;
  const start = ({ mount, unmount }: typeof import("svelte"), Page: import("svelte").Component): void => {
    const page = mount(Page, { target: document.body });
    end = () => unmount(page);
  };
  run(readFileSync(`${cache}/bundle.js`, "utf8"), { ...common, start });
  await soon();
  FakeWebSocket.last.say("presence:state", { group: "attendants", members: [ana], total: 1, offset: "1" });
  expect(await reported()).toEqual([["201"]]);
  expect(document.body.textContent).toBe("connected true true Ana");
  end();
  await soon();
  expect(FakeWebSocket.open).toEqual([]);
});
