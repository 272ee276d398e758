// @vitest-environment jsdom
import { act, cleanup, renderHook } from "@testing-library/react";
import { StrictMode, createElement, type ReactNode } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { SocketProvider, useGap, usePresence, useSocket, useSocketEvent, useThread } from "../src/react.js";
import { FakeWebSocket, token } from "./fake.js";

const options = {
  url: "ws://server/hub/",
  getToken: () => token(),
  WebSocket: FakeWebSocket as unknown as typeof WebSocket,
  random: () => 1,
};

function wrapper({ children }: { children: ReactNode }): ReactNode {
  return createElement(StrictMode, null, createElement(SocketProvider, { namespaces: { hub: options } }, children));
}

const soon = (milliseconds = 1): Promise<void> =>
  act(async () => {
    await vi.advanceTimersByTimeAsync(milliseconds);
  });

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

test("StrictMode opens one socket, and the last to unmount closes it", async () => {
  const first = renderHook(() => useSocket("hub"), { wrapper });
  await soon();
  expect(FakeWebSocket.made).toHaveLength(1);
  expect(first.result.current).toMatchObject({ connected: true, status: "connected" });
  first.unmount();
  await soon(999);
  expect(FakeWebSocket.open).toHaveLength(1);
  await soon(1);
  expect(FakeWebSocket.open).toHaveLength(0);
});

test("two components share a connection, and a page that changes keeps it", async () => {
  const { rerender } = renderHook(
    ({ page }: { page: string }) => [useSocket("hub").socket, useSocket("hub").socket, page],
    { wrapper, initialProps: { page: "one" } },
  );
  await soon();
  rerender({ page: "two" });
  await soon(5000);
  expect(FakeWebSocket.made).toHaveLength(1);
});

test("a hundred mounts and unmounts leak no socket and no timer", async () => {
  for (let n = 0; n < 100; n++) {
    const { unmount } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper });
    await soon(n % 3);
    unmount();
  }
  await soon(1001);
  expect(FakeWebSocket.open).toEqual([]);
  expect(vi.getTimerCount()).toBe(0);
});

test("connects with the session's token, beats, reconnects a second later up to five times, ends on unmount", async () => {
  const namespaces = {
    hub: { ...options, getToken: () => token(undefined, "session"), reconnectionDelay: 1000, reconnectionAttempts: 5 },
  };
  const { result, unmount } = renderHook(() => useSocket("hub"), {
    wrapper: ({ children }: { children: ReactNode }) => createElement(SocketProvider, { namespaces }, children),
  });
  await soon();
  expect(FakeWebSocket.last.protocols[1]).toMatch(/^bearer\.session\./);
  await soon(30_000);
  expect(FakeWebSocket.last.events("heartbeat")).toHaveLength(1);
  FakeWebSocket.last.fail(1006);
  await soon(1001);
  expect(result.current.connected).toBe(true);
  FakeWebSocket.script = Array<"refuse">(9).fill("refuse");
  await soon(10_000);
  FakeWebSocket.last.fail(1006);
  await soon(600_000);
  expect(FakeWebSocket.made).toHaveLength(2 + 5);
  expect(result.current.status).toBe("stopped");
  unmount();
});

test("every message reaches the latest handler once, without a render", async () => {
  const seen: string[] = [];
  let renders = 0;
  const { rerender } = renderHook(
    ({ prefix }: { prefix: string }) => {
      renders += 1;
      const { socket } = useSocket("hub");
      useSocketEvent(socket, "thread:message", ({ message_id }) => seen.push(prefix + message_id));
    },
    { wrapper, initialProps: { prefix: "a" } },
  );
  await soon();
  const before = renders;
  act(() => {
    for (let n = 0; n < 100; n++) FakeWebSocket.last.message("42", String(n));
  });
  expect(seen).toEqual(Array.from({ length: 100 }, (_, n) => `a${n}`));
  expect(renders).toBe(before);
  rerender({ prefix: "b" });
  act(() => FakeWebSocket.last.message("42", "100"));
  expect(seen.at(-1)).toBe("b100");
});

test("typists come, stop, and are forgotten when nobody says that they stopped", async () => {
  const { result } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper });
  await soon();
  const type = (user: string, typing: boolean): void =>
    FakeWebSocket.last.say("thread:typing", { thread_id: "42", user_id: user, namespace: "portal", name: user, typing });
  act(() => {
    type("ana", true);
    type("bob", true);
    type("ana", true);
  });
  expect(result.current.typists.map((each) => each.userId).sort()).toEqual(["ana", "bob"]);
  act(() => type("ana", false));
  expect(result.current.typists.map((each) => each.userId)).toEqual(["bob"]);
  await soon(12_000);
  expect(result.current.typists).toEqual([]);
});

test("typing is said every four seconds, and ended by itself", async () => {
  const { result } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper });
  await soon();
  for (let n = 0; n < 50; n++) {
    act(() => result.current.sendTyping());
    await soon(100);
  }
  expect(FakeWebSocket.last.events("typing:start")).toHaveLength(2);
  await soon(5000);
  expect(FakeWebSocket.last.events("typing:stop")).toHaveLength(1);
});

test("presence is the last state and every change since", async () => {
  const { result } = renderHook(() => usePresence(useSocket("hub").socket, "sales"), { wrapper });
  await soon();
  const member = (user_id: string, status: string): object => ({ user_id, name: user_id, status, since: "" });
  const change = (user: string, status: string, room = "presence:sales"): void =>
    FakeWebSocket.last.say(`attendant:${status}`, member(user, status), { room, offset: "1" });
  act(() => {
    FakeWebSocket.last.say("presence:state", { group: "sales", members: [member("bob", "online")], total: 1, offset: "1" });
    change("ana", "online");
    change("bob", "away");
    change("eve", "online", "presence:attendants");
  });
  expect(result.current.map((each) => `${each.user_id} ${each.status}`)).toEqual(["ana online", "bob away"]);
  act(() => change("bob", "offline"));
  expect(result.current.map((each) => each.user_id)).toEqual(["ana"]);
});

test("gaps are told to the latest handler", async () => {
  const rooms: string[] = [];
  renderHook(() => useGap(useSocket("hub").socket, ({ room }) => rooms.push(room)), { wrapper });
  await soon();
  act(() => FakeWebSocket.last.say("room:gap", { room: "user:7", reason: "lost" }));
  await soon(2000);
  expect(rooms).toEqual(["user:7"]);
});

test("on a server nothing is opened", () => {
  function Page(): ReactNode {
    return useSocket("hub").status;
  }
  const html = renderToString(createElement(SocketProvider, { namespaces: { hub: options } }, createElement(Page)));
  expect(html).toBe("stopped");
  expect(FakeWebSocket.made).toEqual([]);
});
