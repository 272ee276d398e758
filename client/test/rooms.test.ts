/** Whether the client is in a room, and what it tells of it, when frames come in an unlucky order. */

import { expect, test } from "vitest";
import type { Socket, SocketOptions } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
let told: string[];
leavesNothing(() => socket);

async function connected(options: Partial<SocketOptions> = {}): Promise<FakeWebSocket> {
  socket = connectTo({ gapDelayMax: 1, ...options });
  told = [];
  for (const name of ["joined", "left", "gap"] as const) socket.when(name, ({ room }) => told.push(`${name} ${room}`));
  socket.on("thread:message", (_, { room, offset }) => told.push(`${room} ${offset}`));
  await soon();
  return FakeWebSocket.last;
}

test("the client is not in a room that it was removed from, also if the server had joined it automatically", async () => {
  const server = await connected();
  expect(socket.isIn("user:7")).toBe(true);
  server.say("room:left", { room: "user:7", reason: "forbidden" });
  expect([socket.isIn("user:7"), told]).toEqual([false, ["left user:7"]]);
  server.fail(1006);
  await soon(1000); // the server joins it again
  expect([socket.isIn("user:7"), told]).toEqual([true, ["left user:7", "gap user:7"]]);
});

test("a room is joined before its first publication, and removed for good, also when all arrive in one tick", async () => {
  const server = await connected();
  server.answers = { "join:thread": null };
  socket.join("1");
  socket.join("2");
  await soon();
  const [first, second] = server.events("join:thread");
  server.say("ack", { room: "thread:1", offset: "200" }, { id: first?.id });
  server.message("1", "201");
  server.say("ack", { room: "thread:2", offset: "200" }, { id: second?.id });
  server.say("room:left", { room: "thread:2", reason: "revoked" });
  await soon();
  expect(told).toEqual(["joined thread:1", "thread:1 201", "joined thread:2", "left thread:2"]);
});

test.each(["unavailable", "rate_limited"])("a leave that is refused for now (%s) is asked for again, unless the room is wanted again", async (code) => {
  const server = await connected();
  const leave = socket.join("42");
  socket.join("43")();
  await soon();
  server.answers = { "leave:thread": { code, message: "not now" } };
  leave();
  socket.join("43")();
  socket.join("43");
  await soon();
  server.answers = {};
  await soon(10_000);
  const left = server.events("leave:thread").map(({ data }) => data.thread_id);
  expect(left).toEqual(["43", "42", "43", "42"]);
});

test("a gap during a resume does not let through what is replayed", async () => {
  const server = await connected();
  socket.join("42");
  await soon();
  server.message("42", "201");
  FakeWebSocket.answers = { resume: null };
  server.fail(1006);
  await soon(1000);
  const back = FakeWebSocket.last;
  const [resume] = back.events("resume");
  back.say("room:gap", { room: "thread:42", reason: "lost" });
  back.message("42", "202");
  back.say("ack", { rooms: { "thread:42": { recovered: true, offset: "201", missed: 1 } } }, { id: resume?.id });
  back.message("42", "202");
  await soon();
  expect(told).toEqual(["joined thread:42", "thread:42 201", "thread:42 202", "gap thread:42"]);
});

test("a gap that is not told yet is not told of a room that was left", async () => {
  const server = await connected({ gapDelayMax: 2000 });
  const leave = socket.join("1");
  socket.join("2");
  await soon();
  for (const room of ["thread:1", "thread:2"]) server.say("room:gap", { room, reason: "lost" });
  leave();
  server.say("room:left", { room: "thread:2", reason: "revoked" });
  await soon(2000);
  expect(told).toEqual(["joined thread:1", "joined thread:2", "left thread:2"]);
});
