// @vitest-environment jsdom
import { act, render, renderHook } from "@testing-library/react";
import { createElement, type ReactNode } from "react";
import { expect, test } from "vitest";
import { useSocket, useThread, type Typist } from "../src/react.js";
import { FakeWebSocket } from "./fake.js";
import { leavesNoConnection, provided, soon, type, wrapper } from "./mounting.js";

leavesNoConnection();

test("typists start, stop, and are dropped without an event", async () => {
  let renders = 0;
  const { result } = renderHook(
    () => {
      renders += 1;
      return useThread(useSocket("hub").socket, "42");
    },
    { wrapper },
  );
  await soon();
  const users = (): string[] => result.current.typists.map((each) => each.userId);
  act(() => type("ana", true));
  act(() => type("bob", true));
  const before = renders;
  act(() => type("ana", true)); // no change
  expect(users()).toEqual(["ana", "bob"]);
  expect(renders).toBe(before);
  await soon(6000);
  act(() => type("bob", true));
  act(() => type("ana", true, { thread_id: "43" }));
  await soon(6000);
  expect(users()).toEqual(["bob"]);
  act(() => type("bob", false));
  expect(users()).toEqual([]);
});

test("a customer and an attendant with the same id are two typists", async () => {
  const { result } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper });
  await soon();
  act(() => {
    type("7", true, { name: "Ana" });
    type("7", true, { name: "Carla", namespace: "hub" });
  });
  expect(result.current.typists.map((each) => each.name)).toEqual(["Ana", "Carla"]);
  act(() => type("7", false));
  expect(result.current.typists).toEqual([{ userId: "7", namespace: "hub", name: "Carla" }]);
});

test("a lost connection has no typists", async () => {
  const { result } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper });
  await soon();
  act(() => type("ana", true));
  act(() => FakeWebSocket.last.fail(1006));
  expect(result.current.typists).toEqual([]);
  await soon(501);
});

test("a thread that was left and is wanted again has no typists before it is entered", async () => {
  const { result, rerender } = renderHook(({ id }) => useThread(useSocket("hub").socket, id), { wrapper, initialProps: { id: "42" } });
  await soon();
  FakeWebSocket.last.answers = { "leave:thread": null, "join:thread": null };
  rerender({ id: "43" });
  await soon(1001);
  rerender({ id: "42" });
  await soon();
  act(() => type("ana", true)); // the server has not read of the leave yet
  expect(result.current).toMatchObject({ joined: false, typists: [] });
});

test("all components in a thread see the same typists, also one that is mounted later", async () => {
  const lists: (readonly Typist[])[] = [];
  function Typists({ at }: { at: number }): ReactNode {
    lists[at] = useThread(useSocket("hub").socket, "42").typists;
    return null;
  }
  const tree = (count: number): ReactNode =>
    Array.from({ length: count }, (_, at) => createElement(Typists, { key: at, at }));
  const { rerender } = render(tree(2), { wrapper });
  await soon();
  act(() => type("ana", true));
  rerender(tree(3));
  await soon();
  expect(lists.map((list) => list.map((each) => each.userId))).toEqual([["ana"], ["ana"], ["ana"]]);
  expect(FakeWebSocket.last.events("join:thread").length - FakeWebSocket.last.events("leave:thread").length).toBe(1);
  rerender(tree(1));
  act(() => type("bob", true));
  expect(lists[0]?.map((each) => each.userId)).toEqual(["ana", "bob"]);
});

test("another thread id leaves the first thread and drops its typists", async () => {
  const shown: string[] = [];
  const { rerender, result } = renderHook(
    ({ id }: { id: string }) => {
      const thread = useThread(useSocket("hub").socket, id);
      shown.push(`${id} ${thread.typists.map((each) => each.userId).join()} ${thread.joined ? "in" : "out"}`);
      return thread;
    },
    { wrapper: provided(), initialProps: { id: "42" } },
  );
  await soon();
  act(() => type("ana", true));
  expect(shown.at(-1)).toBe("42 ana in");
  act(() => result.current.sendTyping());
  rerender({ id: "43" });
  await soon(1001);
  expect(shown.filter((each) => each.startsWith("43 ana"))).toEqual([]);
  expect(shown.at(-1)).toBe("43  in");
  expect(FakeWebSocket.last.sent.map(({ event, data }) => `${event} ${String(data["thread_id"])}`)).toEqual([
    "join:thread 42",
    "typing:start 42",
    "typing:stop 42",
    "join:thread 43",
    "leave:thread 42",
  ]);
});

test("a refused thread is asked for again by the next component", async () => {
  FakeWebSocket.answers = { "join:thread": { code: "forbidden", message: "not allowed" } };
  const { rerender, result } = renderHook(
    ({ id }: { id: string }) => useThread(useSocket("hub").socket, id),
    { wrapper, initialProps: { id: "42" } },
  );
  await soon();
  FakeWebSocket.last.answers = {};
  rerender({ id: "43" });
  rerender({ id: "42" });
  expect(result.current.refused).toBe(undefined);
  await soon();
  expect(result.current.joined).toBe(true);
});

test("a component knows when it is in a thread, and when it is refused", async () => {
  const states: unknown[] = [];
  FakeWebSocket.answers = { "join:thread": { code: "forbidden", message: "not allowed" } };
  const { rerender } = renderHook(
    ({ id }: { id: string }) => {
      const { joined, refused } = useThread(useSocket("hub").socket, id);
      states.push([id, joined, refused]);
    },
    { wrapper: provided(), initialProps: { id: "42" } },
  );
  await soon();
  expect(states.at(-1)).toEqual(["42", false, "forbidden"]);
  FakeWebSocket.last.answers = {};
  rerender({ id: "43" });
  await soon();
  expect(states.at(-1)).toEqual(["43", true, undefined]);
  act(() => FakeWebSocket.last.fail(1006));
  await soon(501);
  expect(states.at(-1)).toEqual(["43", true, undefined]); // it is resumed
  act(() => FakeWebSocket.last.say("room:left", { room: "thread:43", reason: "revoked" }));
  expect(states.at(-1)).toEqual(["43", false, "revoked"]);
});

test("typing is reported every four seconds, and ends automatically", async () => {
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

test("typing is not reported after unmounting, without a connection, or outside the thread", async () => {
  const { result, unmount } = renderHook(() => useThread(useSocket("hub").socket, "42"), { wrapper: provided() });
  const { sendTyping, stopTyping } = result.current;
  FakeWebSocket.answers = { "join:thread": null };
  sendTyping();
  await soon();
  sendTyping();
  expect(FakeWebSocket.last.events("typing:start")).toEqual([]);
  FakeWebSocket.last.answers = {};
  await soon(25_000);
  sendTyping();
  expect(FakeWebSocket.last.events("typing:start")).toHaveLength(1);
  unmount();
  expect(FakeWebSocket.last.sent.at(-1)?.event).toBe("typing:stop");
  sendTyping();
  stopTyping();
  await soon(999);
  expect(FakeWebSocket.last.sent.at(-1)?.event).toBe("typing:stop");
  await soon(1);
  expect(FakeWebSocket.open).toEqual([]);
});
