/** Clocks that are wrong, and times that no timer can have. */

import { expect, test, vi } from "vitest";
import type { Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

test("a clock that is set back does not delay the next attempt", async () => {
  socket = connectTo();
  await soon();
  FakeWebSocket.last.fail(1006);
  await soon(501);
  expect(socket.status).toBe("connected");
  vi.setSystemTime(new Date("2025-12-31T23:00:00Z"));
  FakeWebSocket.last.fail(1006);
  expect((socket.nextAttempt ?? 0) - Date.now()).toBeLessThanOrEqual(1000);
  await soon(1001);
  expect(socket.status).toBe("connected");
});

test("a clock that is set back between loss and wake does not delay the next attempt", async () => {
  socket = connectTo();
  await soon();
  FakeWebSocket.last.fail(1006);
  vi.setSystemTime(new Date("2025-12-31T23:00:00Z"));
  socket.wake();
  await soon(501);
  expect(socket.status).toBe("connected");
});

test("heartbeats and pauses longer than a timer can be are not immediate", async () => {
  FakeWebSocket.heartbeat = 2 ** 31;
  socket = connectTo();
  await soon();
  FakeWebSocket.last.answers = { "join:thread": { code: "rate_limited", message: "no", retry_after: 1e9 } };
  socket.join("42");
  await soon(1000);
  expect(FakeWebSocket.last.events("join:thread").length).toBe(1);
  expect(FakeWebSocket.last.events("heartbeat").length).toBe(0);
});
