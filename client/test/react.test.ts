// @vitest-environment jsdom
import { act, render, renderHook, screen } from "@testing-library/react";
import { Suspense, createElement, use, useState, type ReactNode } from "react";
import { renderToString } from "react-dom/server";
import { expect, test, vi } from "vitest";
import { SocketProvider, useGap, usePresence, useSocket, useSocketEvent, useThread, type Member } from "../src/react.js";
import type { Socket } from "../src/index.js";
import { FakeWebSocket, token } from "./fake.js";
import { leavesNoConnection, options, provided, soon, type, wrapper } from "./mounting.js";

leavesNoConnection();

test("StrictMode opens one socket, and the last unmount closes it", async () => {
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

test("two components share a connection, and a page change keeps it", async () => {
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

test.each(["denied", "stopped"])("a further component does not bring a %s connection back; connect() may", async (end) => {
  let socket: Socket | undefined;
  function Page(): ReactNode {
    const hub = useSocket("hub");
    socket = hub.socket;
    return hub.status;
  }
  const pages = (count: number): ReactNode => Array.from({ length: count }, (_, key) => createElement(Page, { key }));
  const { rerender, container } = render(pages(1), { wrapper });
  await soon();
  act(() => (end === "denied" ? FakeWebSocket.last.fail(4403) : socket?.disconnect()));
  rerender(pages(2));
  await soon(60_000);
  expect(FakeWebSocket.made).toHaveLength(1);
  expect(container.textContent).toBe(end + end);
  act(() => socket?.connect());
  await soon();
  expect(container.textContent).toBe("connectedconnected");
});

test("an unknown namespace raises an error with the known ones", () => {
  for (const name of ["portal", "constructor"]) {
    expect(() => renderHook(() => useSocket(name), { wrapper: provided() })).toThrow(
      `there is no namespace "${name}"; expected one of "hub"`,
    );
  }
  expect(() => renderHook(() => useSocket("hub"))).toThrow("useSocket() needs a <SocketProvider> around it");
});

test("the latest getToken is used", async () => {
  function Session({ user }: { user: string }): ReactNode {
    const namespaces = { hub: { ...options, getToken: () => token(Date.now() / 1000 + 60, user) } };
    return createElement(SocketProvider, { namespaces }, createElement(Page));
  }
  function Page(): ReactNode {
    return useSocket("hub").status;
  }
  const { rerender } = render(createElement(Session, { user: "ana" }));
  await soon();
  rerender(createElement(Session, { user: "bob" }));
  await soon(55_000);
  FakeWebSocket.last.fail(1006);
  await soon(501);
  expect(FakeWebSocket.made.map((each) => each.protocols[1]?.split(".")[1])).toEqual(["ana", "bob"]);
});

test("a component that suspends keeps the connection, the thread and its handlers", async () => {
  const seen: string[] = [];
  let resolve: (value: string) => void = () => undefined;
  const loading = new Promise<string>((done) => (resolve = done));
  let load: (what: Promise<string>) => void = () => undefined;
  function Page(): ReactNode {
    const { socket } = useSocket("hub");
    useThread(socket, "42");
    useSocketEvent(socket, "thread:message", ({ message_id }) => seen.push(message_id));
    const [data, setData] = useState<Promise<string>>();
    load = setData;
    return data === undefined ? "ready" : use(data);
  }
  render(createElement(Suspense, { fallback: "waiting" }, createElement(Page)), { wrapper });
  await soon();
  await act(async () => load(loading));
  await soon(5000);
  expect(screen.getByText("waiting")).toBeTruthy();
  act(() => FakeWebSocket.last.message("42", "201"));
  await act(async () => resolve("here it is"));
  await soon(500);
  expect(screen.getByText("here it is")).toBeTruthy();
  act(() => FakeWebSocket.last.message("42", "202"));
  expect(seen).toEqual(["201", "202"]);
  expect(FakeWebSocket.made).toHaveLength(1);
  // StrictMode, which mounts everything twice, does not leave it either.
  expect(FakeWebSocket.last.sent.map((frame) => frame.event)).toEqual(["join:thread"]);
});

test("connects with the session's token, sends heartbeats, reconnects a second later up to five times, ends on unmount", async () => {
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


test("presence is the last state and every change since, also for a component that is mounted later", async () => {
  const lists: (readonly Member[])[] = [];
  function People({ at }: { at: number }): ReactNode {
    lists[at] = usePresence(useSocket("hub").socket, "sales");
    return null;
  }
  const tree = (count: number): ReactNode =>
    Array.from({ length: count }, (_, at) => createElement(People, { key: at, at }));
  const { rerender } = render(tree(0), { wrapper });
  rerender(tree(1));
  await soon();
  const member = (user_id: string, status: string): object => ({ user_id, name: user_id, status, since: "" });
  const change = (user: string, status: string, offset: string): void =>
    FakeWebSocket.last.say(`attendant:${status}`, member(user, status), { room: "presence:sales", offset });
  act(() => {
    const members = [member("eve", "online"), member("bob", "online")];
    FakeWebSocket.last.say("presence:state", { group: "sales", members, total: 2, offset: "1" });
    change("ana", "online", "2");
    change("bob", "away", "3");
  });
  rerender(tree(2));
  const shown = lists.map((list) => list.map((each) => `${each.user_id} ${each.status}`));
  expect(shown).toEqual(Array(2).fill(["ana online", "bob away", "eve online"]));
  expect(lists[1]).toBe(lists[0]);
  act(() => FakeWebSocket.last.fail(1006));
  expect(lists[0]).toHaveLength(3);
  await soon(501);
});

test("gaps reach the latest handler", async () => {
  const rooms: string[] = [];
  renderHook(() => useGap(useSocket("hub").socket, ({ room }) => rooms.push(room)), { wrapper });
  await soon();
  act(() => FakeWebSocket.last.say("room:gap", { room: "user:7", reason: "lost" }));
  await soon(2000);
  expect(rooms).toEqual(["user:7"]);
});

test("server rendering opens no connection", () => {
  function Page(): ReactNode {
    const { socket, status } = useSocket("hub");
    const { typists, joined } = useThread(socket, "42");
    useSocketEvent(socket, "thread:message", () => undefined);
    return `${status} ${String(joined)} ${typists.length} ${usePresence(socket, "sales").length}`;
  }
  const html = renderToString(createElement(SocketProvider, { namespaces: { hub: options } }, createElement(Page)));
  expect(html).toBe("stopped false 0 0");
  expect(FakeWebSocket.made).toEqual([]);
});

test("another user needs no key: every socket and thread starts anew, at once", async () => {
  const shown: string[] = [];
  function Page(): ReactNode {
    const { socket, status } = useSocket("hub");
    const { joined, refused } = useThread(socket, "42");
    const people = usePresence(socket, "sales");
    shown.push(`${status} ${joined ? "in" : "out"} ${refused ?? "-"} ${people.map(({ name }) => name).join()}`);
    return null;
  }
  function Session({ user }: { user: string | null }): ReactNode {
    const namespaces = { hub: { ...options, getToken: () => token(undefined, user ?? "none") } };
    return createElement(SocketProvider, { namespaces, user }, createElement(Page));
  }
  const bearers = (): (string | undefined)[] => FakeWebSocket.made.map((each) => each.protocols[1]?.split(".")[1]);
  const { rerender } = render(createElement(Session, { user: null }));
  await soon(60_000);
  expect([FakeWebSocket.made, shown.at(-1)]).toEqual([[], "stopped out - "]);
  FakeWebSocket.answers = { "join:thread": { code: "forbidden", message: "not allowed" } };
  rerender(createElement(Session, { user: "ana" }));
  await soon();
  const members = [{ user_id: "7", name: "Ana", status: "online", since: "" }];
  act(() => FakeWebSocket.last.say("presence:state", { group: "sales", members, total: 1, offset: "1" }));
  expect(shown.at(-1)).toBe("connected out forbidden Ana");
  FakeWebSocket.answers = {};
  FakeWebSocket.user = { user_id: "8", role: "attendant" };
  rerender(createElement(Session, { user: "bob" }));
  expect(shown.at(-1)).not.toContain("Ana");
  await soon();
  expect(shown.at(-1)).toBe("connected in - ");
  expect(bearers()).toEqual(["ana", "bob"]);
  rerender(createElement(Session, { user: null }));
  await soon(60_000);
  expect([bearers(), shown.at(-1)]).toEqual([["ana", "bob"], "stopped out - "]);
});

test("a user who logs in less than a second after another page was left is connected", async () => {
  const Page = (): string => useSocket("hub").status;
  const tree = (user: string | null): ReactNode =>
    createElement(SocketProvider, { user, namespaces: { hub: options } }, user === null ? null : createElement(Page));
  const { container, rerender } = render(tree("7"));
  await soon();
  rerender(tree(null));
  await soon(500);
  expect(FakeWebSocket.open).toEqual([]);
  rerender(tree("8"));
  await soon(1001);
  expect(container.textContent).toBe("connected");
});

test("the reason of a refusal is shown", async () => {
  const error = { code: "forbidden_role", message: "role 'customer' may not enter 'hub'" };
  const namespaces = { hub: { ...options, fetch: () => Promise.resolve(Response.json({ error }, { status: 403 })) } };
  FakeWebSocket.script = ["refuse"];
  const { result } = renderHook(() => useSocket("hub"), {
    wrapper: ({ children }: { children: ReactNode }) => createElement(SocketProvider, { namespaces }, children),
  });
  await soon(5);
  expect(result.current).toMatchObject({ status: "denied", refusal: { status: 403, ...error } });
});

test.each([undefined, null])("a thread or group that is %s joins nothing", async (none) => {
  const { result, rerender } = renderHook(
    ({ id }: { id: number | null | undefined }) => {
      const { socket } = useSocket("hub");
      return { thread: useThread(socket, id), people: usePresence(socket, none) };
    },
    { wrapper, initialProps: { id: none as number | null | undefined } },
  );
  await soon();
  result.current.thread.sendTyping();
  result.current.thread.stopTyping();
  expect([FakeWebSocket.last.sent, result.current.thread.joined, result.current.people]).toEqual([[], false, []]);
  rerender({ id: 42 });
  await soon();
  expect(result.current.thread.joined).toBe(true);
  act(() => type("ana", true));
  expect(result.current.thread.typists.map(({ name }) => name)).toEqual(["ana"]);
});

test("a wrong option of a namespace is named in the render", () => {
  const namespaces = { hub: { ...options, ackTimeout: -1 } };
  const faulty = ({ children }: { children: ReactNode }): ReactNode => createElement(SocketProvider, { namespaces }, children);
  expect(() => renderHook(() => useSocket("hub"), { wrapper: faulty })).toThrow("ackTimeout: expected 1 to 2147483647, got -1");
});

test("server rendering needs no WebSocket", () => {
  vi.stubGlobal("WebSocket", undefined);
  const namespaces = { hub: { url: "ws://server/hub/", getToken: () => token() } };
  const Page = (): ReactNode => useSocket("hub").status;
  expect(renderToString(createElement(SocketProvider, { namespaces }, createElement(Page)))).toBe("stopped");
  vi.unstubAllGlobals();
});
