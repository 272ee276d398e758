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

test("wake() again and again probes a connection once a second, and still finds out that it is dead", async () => {
  FakeWebSocket.limits = { frame_bytes: 65_536, rate: 50, burst: 100, rooms: 200 };
  socket = connectTo();
  await soon();
  const server = FakeWebSocket.last;
  const wakeFor = async (milliseconds: number): Promise<void> => {
    for (let at = 0; at < milliseconds; at += 10) {
      socket.wake();
      await soon(10);
    }
  };
  server.answers = { heartbeat: null };
  await wakeFor(4000);
  expect(server.events("heartbeat").length).toBe(4);
  await wakeFor(1000);
  expect([server.closed, FakeWebSocket.made.length]).toEqual([true, 1]);
  await wakeFor(510);
  expect([socket.status, FakeWebSocket.made.length]).toEqual(["connected", 2]);
});

test("wake() again and again does not put the next attempt off, and counts anew after one that failed", async () => {
  FakeWebSocket.script = ["refuse", "refuse", "refuse", "refuse"];
  socket = connectTo({ reconnectionDelay: 900 });
  await soon(900 + 1800);
  expect(FakeWebSocket.made.length).toBe(2);
  for (let attempt = 3; attempt <= 5; attempt++) {
    for (let at = 0; at < 95; at++) {
      socket.wake();
      await soon(10);
    }
    expect(FakeWebSocket.made.length).toBe(attempt);
  }
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
