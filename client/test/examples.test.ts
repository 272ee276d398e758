// @vitest-environment jsdom
/// <reference types="vite/client" />
/** The examples of the doc comments, run as they stand there. */

import { act, cleanup, render } from "@testing-library/react";
import * as React from "react";
import ts from "typescript";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Socket } from "../src/index.js";
import * as hooks from "../src/react.js";
import react from "../src/react.ts?raw";
import socket from "../src/socket.ts?raw";
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
  const ana = { user_id: "7", name: "Ana", status: "online", since: "" };
  FakeWebSocket.last.say("presence:state", { group: "attendants", members: [ana], total: 1, offset: "1" });
  expect(await reported()).toEqual([["thread:42", "201"], ["thread:42"]]);
  expect(state).toEqual({ status: "connected", joined: true, members: [ana] });
});
