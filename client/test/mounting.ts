// Components below providers that share a connection, on a clock of the test's.
import { act, cleanup } from "@testing-library/react";
import { StrictMode, createElement, type ReactNode } from "react";
import { afterEach, beforeEach, expect, vi } from "vitest";
import { SocketProvider } from "../src/react.js";
import { FakeWebSocket, token } from "./fake.js";

export const options = {
  url: "ws://server/hub/",
  getToken: () => token(),
  WebSocket: FakeWebSocket as unknown as typeof WebSocket,
  random: () => 1,
};

/** One provider for all trees of a test, which share a connection. */
export function provided(): (props: { children: ReactNode }) => ReactNode {
  return ({ children }) => createElement(SocketProvider, { namespaces: { hub: options } }, children);
}

export function wrapper({ children }: { children: ReactNode }): ReactNode {
  return createElement(StrictMode, null, createElement(SocketProvider, { namespaces: { hub: options } }, children));
}

export const soon = (milliseconds = 1): Promise<void> =>
  act(async () => {
    await vi.advanceTimersByTimeAsync(milliseconds);
  });

/** Every test starts without connections, and leaves none behind. */
export function leavesNoConnection(): void {
  beforeEach(() => {
    vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
    FakeWebSocket.reset();
  });

  afterEach(async () => {
    cleanup();
    await soon(1001);
    expect(FakeWebSocket.open).toEqual([]);
    vi.useRealTimers();
  });
}

/** The server says that a user types in thread 42, or has stopped. */
export function type(user: string, typing: boolean, more: object = {}): void {
  FakeWebSocket.last.say("thread:typing", {
    ...{ thread_id: "42", user_id: user, namespace: "portal", name: user, typing },
    ...more,
  });
}
