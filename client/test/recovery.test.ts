import { describe, expect, test } from "vitest";
import type { Gap, Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

async function connected(options: Parameters<typeof connectTo>[0] = {}): Promise<FakeWebSocket> {
  socket = connectTo(options);
  await soon();
  expect(socket.status).toBe("connected");
  return FakeWebSocket.last;
}

describe("a resume", () => {
  /** A connection in thread 42 at offset 205 that gets no answer to its resume. */
  async function unanswered(): Promise<FakeWebSocket> {
    const server = await connected();
    socket.join("42");
    await soon();
    server.message("42", "205");
    FakeWebSocket.answers = { resume: null };
    server.fail(1006);
    await soon(501);
    return FakeWebSocket.last;
  }

  test("that is answered late handles nothing twice", async () => {
    const back = await unanswered();
    const seen: string[] = [];
    socket.on("thread:message", ({ message_id }) => seen.push(message_id));
    back.message("42", "207"); // the server does not wait forever
    await soon(12_000);
    expect(back.events("resume")).toHaveLength(2);
    back.message("42", "206");
    back.message("42", "207");
    const [first, second] = back.events("resume");
    const recovered = { rooms: { "thread:42": { recovered: true, offset: "205", missed: 2 } } };
    back.say("ack", recovered, { id: first?.id });
    back.message("42", "206");
    expect(seen).toEqual([]);
    back.say("ack", recovered, { id: second?.id });
    back.message("42", "206");
    back.message("42", "207");
    expect(seen).toEqual(["206", "207"]);
    expect(second?.data).toEqual({ rooms: { "user:7": "100", "thread:42": "205" } });
  });

  test("that cannot recover a room continues at its end, also if new messages follow at once", async () => {
    const back = await unanswered();
    back.say(
      "ack",
      { rooms: { "thread:42": { recovered: false, offset: "300", missed: 0 } } },
      { id: back.events("resume")[0]?.id },
    );
    back.message("42", "301");
    back.fail(1006);
    await soon(2000);
    expect(FakeWebSocket.last.events("resume")[0]?.data).toMatchObject({ rooms: { "thread:42": "301" } });
  });

  test("reports a gap of the user's own room if its offset is unknown", async () => {
    const server = await connected();
    const gaps: Gap[] = [];
    server.say("room:gap", { room: "user:7", reason: "lost" });
    socket.when("gap", (gap) => gaps.push(gap));
    server.fail(1006);
    await soon(3000);
    expect(gaps).toEqual([{ room: "user:7", reason: "joined anew" }]);
  });
});

describe("gaps", () => {
  async function losing(options: Parameters<typeof connectTo>[0] = {}): Promise<{ server: FakeWebSocket; gaps: Gap[] }> {
    const server = await connected(options);
    const gaps: Gap[] = [];
    socket.when("gap", (gap) => gaps.push(gap));
    return { server, gaps };
  }

  test("are reported after a random delay, each room once", async () => {
    const { server, gaps } = await losing({ random: () => 0.75, gapDelayMax: 4000 });
    server.say("room:gap", { room: "user:7", reason: "lost" });
    server.say("room:gap", { room: "presence:sales", reason: "lost" });
    await soon(2900);
    server.say("room:gap", { room: "user:7", reason: "lost again" });
    expect(gaps).toEqual([]);
    await soon(100);
    expect(gaps.map(({ room }) => room).sort()).toEqual(["presence:sales", "user:7"]);
    await soon(60_000);
    expect(gaps).toHaveLength(2);
  });

  test("of many clients are spread", async () => {
    const { server, gaps } = await losing();
    const sockets = Array.from({ length: 200 }, () => connectTo({ random: Math.random }));
    await soon();
    const told: number[] = [];
    for (const each of sockets) each.when("gap", () => told.push(Date.now()));
    const start = Date.now();
    for (const each of FakeWebSocket.open) each.say("room:gap", { room: "user:7", reason: "lost" });
    await soon(2000);
    for (const each of sockets) each.disconnect();
    expect([server.closed, gaps.length, told.length]).toEqual([false, 1, 200]);
    const perHalf = [0, 500, 1000, 1500].map((from) => told.filter((at) => Math.floor((at - start) / 500) * 500 === from).length);
    expect(Math.max(...perHalf)).toBeLessThan(90); // 50 on average
  });

  test("are reported once although the connection is lost before the delay ends", async () => {
    const { server, gaps } = await losing();
    server.say("room:gap", { room: "user:7", reason: "lost" });
    server.fail(1006);
    await soon(5000);
    expect(gaps).toEqual([{ room: "user:7", reason: "joined anew" }]);
  });

  test("that were not reported before a disconnect are reported after the next connect", async () => {
    const { server, gaps } = await losing();
    socket.join("42");
    await soon();
    FakeWebSocket.answers = { resume: { rooms: { "thread:42": { recovered: false, offset: "300", missed: 0 } } } };
    server.fail(1006);
    await soon(501);
    socket.disconnect();
    await soon(60_000);
    expect(gaps).toEqual([]);
    FakeWebSocket.answers = {};
    socket.connect();
    await soon(5000);
    expect(gaps).toEqual(["user:7", "thread:42"].map((room) => ({ room, reason: "joined anew" })));
  });
});
