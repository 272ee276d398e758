/** Handlers that act on the socket while it reports something: what they do holds. */

import { expect, test, vi } from "vitest";
import { SocketError, type Socket, type Status } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, token, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

const MINUTES = 600_000;

test("disconnect() is final in a handler of a change of user", async () => {
  socket = connectTo();
  await soon();
  socket.when("reset", ({ reason }) => {
    if (reason === "user") socket.disconnect();
  });
  FakeWebSocket.user = { user_id: "8", role: "attendant" };
  FakeWebSocket.last.fail(1006);
  await soon(510);
  expect([socket.status, socket.connectionId, vi.getTimerCount()]).toEqual(["stopped", undefined, 0]);
  await soon(MINUTES);
  expect(FakeWebSocket.made.length).toBe(2);
});

test("another connect() in a handler of a change of user is not taken for connected", async () => {
  socket = connectTo();
  const connections: unknown[] = [];
  socket.when("status", (status) => {
    if (status === "connected") connections.push(socket.connectionId);
  });
  socket.on("connection:ready", ({ connection_id: id }) => connections.push(id));
  await soon();
  socket.when("reset", ({ reason }) => {
    if (reason !== "user") return;
    socket.disconnect();
    socket.connect();
  });
  FakeWebSocket.user = { user_id: "8", role: "attendant" };
  FakeWebSocket.last.fail(1006);
  await soon(510);
  expect([socket.status, connections]).toEqual(["connected", ["c1", "c1", "c3", "c3"]]);
});

test("disconnect() is final in a handler of an error of getToken", async () => {
  socket = connectTo({ getToken: () => Promise.reject(new Error("no network")) });
  socket.when("error", () => socket.disconnect());
  await soon();
  expect([socket.status, vi.getTimerCount()]).toEqual(["stopped", 0]);
});

test("an attempt that a handler of a refusal starts goes on", async () => {
  let mark = "old";
  socket = connectTo({
    getToken: () => token(9e9, mark),
    fetch: () => Promise.resolve(new Response(null, { status: 403 })),
  });
  FakeWebSocket.script = ["refuse"];
  socket.when("refused", () => {
    mark = "new";
    socket.disconnect();
    socket.connect();
  });
  await soon(10);
  expect([socket.status, FakeWebSocket.last.protocols[1]]).toEqual(["connected", `bearer.${token(9e9, "new")}`]);
});

test("disconnect() in a handler of a reset happens once", async () => {
  socket = connectTo();
  await soon();
  let resets = 0;
  socket.when("reset", () => {
    resets += 1;
    socket.disconnect();
  });
  socket.disconnect();
  expect([resets, socket.status]).toEqual([1, "stopped"]);
});

test("connect() in a handler of a reset is the last status that is reported", async () => {
  socket = connectTo();
  await soon();
  const reported: Status[] = [];
  socket.when("status", (status) => reported.push(status));
  const off = socket.when("reset", () => socket.connect());
  socket.disconnect();
  off();
  expect([socket.status, reported.at(-1)]).toEqual(["connecting", "connecting"]);
});

test("disconnect() in a handler of a room that is lost leaves no position of the others", async () => {
  socket = connectTo();
  for (const thread of ["1", "2"]) socket.join(thread);
  await soon();
  FakeWebSocket.answers = {
    resume: {
      rooms: {
        "thread:1": { error: "forbidden" },
        "thread:2": { recovered: false, offset: "900", missed: 0 },
        "user:7": { recovered: false, offset: "900", missed: 0 },
      },
    },
  };
  socket.when("left", () => socket.disconnect());
  FakeWebSocket.last.fail(1006);
  await soon(501);
  expect([socket.status, socket.isIn("2"), vi.getTimerCount()]).toEqual(["stopped", false, 0]);
  FakeWebSocket.answers = {};
  socket.connect();
  await soon();
  expect(FakeWebSocket.last.events("resume")).toEqual([]);
});

test("an event that is sent because another one was too large is sent once, and the other reported once", async () => {
  FakeWebSocket.limits = { frame_bytes: 100, rate: 0, burst: 0, rooms: 0 };
  socket = connectTo();
  await soon();
  const errors: string[] = [];
  socket.when("error", ({ code }) => {
    errors.push(code);
    if (errors.length < 20) socket.emit("presence:away", {});
  });
  socket.emit("cursor:move", { thread_id: "1", position: "x".repeat(200) });
  expect([errors, FakeWebSocket.last.events("presence:away").length]).toEqual([["too_large"], 1]);
});

test.each([undefined, new Error("the token is secret")])("a refresh that fails is reported as one of getToken", async (cause) => {
  let fails = false;
  socket = connectTo({ getToken: () => (fails ? Promise.reject(cause) : token()) });
  const errors: SocketError[] = [];
  socket.when("error", (error) => errors.push(error));
  await soon();
  fails = true;
  FakeWebSocket.last.say("auth:expiring", { expires_at: "" });
  await soon();
  expect(errors.map(({ name, code, message, cause }) => [name, code, message, cause])).toEqual([
    ["SocketError", "token", "getToken() or url() failed", cause],
  ]);
});

test.each(["disconnect", "reconnect"] as const)("%s() is obeyed in a handler of an error of an event that had waited", async (action) => {
  FakeWebSocket.limits = { frame_bytes: 200, rate: 0, burst: 0, rooms: 0 };
  socket = connectTo();
  const statuses: Status[] = [];
  socket.when("status", (status) => statuses.push(status));
  socket.when("error", () => socket[action]());
  socket.emit("cursor:move", { thread_id: "42", position: "" });
  socket.emit("auth:refresh", { token: "x".repeat(200) });
  await soon();
  expect([statuses, socket.connectionId]).toEqual([[action === "disconnect" ? "stopped" : "offline"], undefined]);
  if (action === "disconnect") expect(vi.getTimerCount()).toBe(0);
});

test("gaps of the last user are not told after disconnect() in a handler of one of them", async () => {
  socket = connectTo({ gapDelayMax: 1 });
  const gaps: string[] = [];
  socket.when("gap", ({ room }) => (gaps.push(room), socket.disconnect()));
  socket.join("1");
  socket.join("2");
  await soon();
  for (const room of ["thread:1", "thread:2"]) FakeWebSocket.last.say("room:gap", { room, reason: "lost" });
  await soon();
  expect(gaps).toEqual(["thread:1"]);
});

test.each([
  ["connecting", "disconnect", ["connecting", "stopped"]],
  ["connected", "disconnect", ["connecting", "connected", "stopped"]],
  ["connected", "reconnect", ["connecting", "connected", "offline", "connecting", "connected"]],
  ["offline", "disconnect", ["connecting", "connected", "offline", "stopped"]],
  ["denied", "connect", ["connecting", "connected", "denied", "connecting", "connected"]],
] as const)("every handler is told in the same order what a handler of %s does with %s()", async (at, action, expected) => {
  socket = connectTo({ autoConnect: false });
  const seen: [Status[], Status[]] = [[], []];
  let isDone = false;
  socket.when("status", (status) => seen[0].push(status));
  socket.when("status", (status) => {
    if (status !== at || isDone) return;
    isDone = true;
    socket[action]();
  });
  socket.when("status", (status) => seen[1].push(status));
  socket.connect();
  await soon();
  if (at === "offline" || at === "denied") FakeWebSocket.last.fail(at === "denied" ? 4403 : 1006);
  await soon(1000);
  expect(seen).toEqual([expected, expected]);
  expect(socket.status).toBe(expected.at(-1));
});

test("what a message tells the page reaches all its handlers before the reset that one of them causes", async () => {
  socket = connectTo();
  const seen: string[] = [];
  socket.on("thread:message", () => socket.disconnect());
  socket.on("thread:message", ({ message_id: id }) => seen.push(id));
  for (const name of ["reset", "status"] as const) socket.when(name, () => seen.push(name));
  socket.join("42");
  await soon();
  seen.length = 0;
  FakeWebSocket.last.message("42", "201");
  expect(seen).toEqual(["201", "reset", "status"]);
});

test("a handler that another one removes is not called any more; one that is added gets the next event", async () => {
  socket = connectTo();
  await soon();
  const seen: string[] = [];
  socket.on("thread:message", () => (off(), socket.on("thread:message", () => seen.push("added"))));
  const off = socket.on("thread:message", () => seen.push("removed"));
  FakeWebSocket.last.message("42", "201");
  expect(seen).toEqual([]);
  FakeWebSocket.last.message("42", "202");
  expect(seen).toEqual(["added"]);
});
