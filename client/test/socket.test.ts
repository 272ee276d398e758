import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { SocketError, type Gap, type Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, token, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

async function connected(options: Parameters<typeof connectTo>[0] = {}): Promise<FakeWebSocket> {
  socket = connectTo(options);
  await soon();
  expect(socket.status).toBe("connected");
  return FakeWebSocket.last;
}

test.each(["", "{", "null", "1", '"x"', "[]", "{}", '{"event":"connection:ready"}', '{"event":5}'])(
  "what is no frame is reported, and ends nothing: %s",
  async (text) => {
    socket = connectTo();
    const codes: unknown[] = [];
    socket.when("error", ({ code }) => codes.push(code));
    await soon();
    FakeWebSocket.last.onmessage?.({ data: text } as MessageEvent);
    expect([codes, socket.status]).toEqual([["invalid_json"], "connected"]);
  },
);

describe("connecting", () => {
  test("gives up a handshake that hangs on a silent connection", async () => {
    FakeWebSocket.script = ["silent"];
    socket = connectTo({ connectTimeout: 3000 });
    await soon(3000);
    expect(socket.status).toBe("offline");
    await soon(501);
    expect(socket.status).toBe("connected");
  });

  test("requests another token when the first request never ends", async () => {
    const getToken = vi.fn(() => token());
    getToken.mockImplementationOnce(() => new Promise<string>(() => undefined) as unknown as string);
    socket = connectTo({ getToken, connectTimeout: 3000 });
    await soon(3000 + 501);
    expect(socket.status).toBe("connected");
    expect(getToken).toHaveBeenCalledTimes(2);
  });

  test.each(["two\nlines", "<html>", "", undefined, null, 7, {}])("is denied with %j for a token, which can never work", async (given) => {
    const getToken = vi.fn(() => given as string);
    const refusals: unknown[] = [];
    socket = connectTo({ getToken });
    socket.when("refused", (refusal) => refusals.push(refusal));
    await soon(60_000);
    expect([socket.status, getToken.mock.calls.length, FakeWebSocket.made]).toEqual(["denied", 1, []]);
    expect(refusals).toEqual([{ status: 0, code: "forbidden", message: "getToken() gave no token" }]);
  });

  test("is denied when no user is logged in", async () => {
    const getToken = vi.fn(() => {
      throw new SocketError("forbidden", "no user is logged in");
    });
    socket = connectTo({ getToken });
    await soon(60_000);
    expect([socket.status, getToken.mock.calls.length]).toEqual(["denied", 1]);
    expect(socket.refusal).toEqual({ status: 0, code: "forbidden", message: "no user is logged in" });
  });

  test("keeps the query of the URL", async () => {
    const server = await connected({ url: "ws://server/hub/?tenant=3" });
    server.fail(1006);
    await soon(501);
    expect(FakeWebSocket.last.url).toBe("ws://server/hub/?tenant=3&resume=1");
  });

  test("that is stopped in the meantime leaves nothing behind", async () => {
    let give: (token: string) => void = () => undefined;
    socket = connectTo({ getToken: () => new Promise((resolve) => (give = resolve)) });
    await soon();
    socket.disconnect();
    give(token());
    await soon(60_000);
    expect(FakeWebSocket.made).toEqual([]);
  });
});

describe("a lost connection", () => {
  test("reports why it was closed, but no failed handshakes", async () => {
    const server = await connected();
    const closings: number[] = [];
    socket.when("closed", ({ code }) => closings.push(code));
    server.fail(1012);
    FakeWebSocket.made.at(-1)?.fail(1006);
    expect(closings).toEqual([1012]);
  });

  test("waits longer each time, up to the cap, and starts over after ten stable seconds", async () => {
    const server = await connected();
    FakeWebSocket.script = Array<"refuse">(8).fill("refuse");
    const times: number[] = [];
    const started = Date.now();
    server.fail(1006);
    while (FakeWebSocket.made.length < 9) {
      const before = FakeWebSocket.made.length;
      await soon(100);
      if (FakeWebSocket.made.length > before) times.push(Date.now() - started);
    }
    const waits = times.map((time, index) => Math.round((time - (times[index - 1] ?? 0)) / 500) * 500);
    expect(waits).toEqual([500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]);
    await soon(20_100);
    expect(socket.status).toBe("connected");
    FakeWebSocket.last.fail(1006);
    await soon(600);
    expect(socket.status).toBe("offline"); // not stable yet
    await soon(20_000);
    await soon(10_000);
    FakeWebSocket.last.fail(1006);
    await soon(600);
    expect(socket.status).toBe("connected");
  });

  test("is planned for a time that the socket tells until the attempt begins", async () => {
    const server = await connected();
    expect(socket.nextAttempt).toBeUndefined();
    FakeWebSocket.script = ["hang"];
    server.fail(1006);
    const planned = socket.nextAttempt;
    if (planned === undefined) throw new Error("expected a time, got none");
    await soon(planned - Date.now());
    expect([socket.status, socket.nextAttempt, FakeWebSocket.made.length]).toEqual(["connecting", undefined, 2]);
    socket.disconnect();
    expect(socket.nextAttempt).toBeUndefined();
  });
});

describe("heartbeats", () => {
  test("are not sent to a server that announces no interval", async () => {
    FakeWebSocket.heartbeat = 0;
    const server = await connected();
    await soon(600_000);
    expect(server.events("heartbeat")).toHaveLength(0);
    expect(FakeWebSocket.made).toHaveLength(1);
  });

  test("start at a random time and then keep the interval", async () => {
    const server = await connected({ random: () => 0 });
    await soon(14_998);
    expect(server.events("heartbeat")).toHaveLength(0);
    await soon(1);
    expect(server.events("heartbeat")).toHaveLength(1);
    await soon(30_000 * 100);
    expect(server.events("heartbeat")).toHaveLength(101);
  });
});

describe("frames", () => {
  test("a call returns the data of its acknowledgement, or rejects with the error", async () => {
    const server = await connected();
    server.answers = { "presence:away": { code: "rate_limited", message: "too many frames", retry_after: 2 } };
    await expect(socket.call("join:thread", { thread_id: 42 })).resolves.toEqual({ room: "thread:42", offset: "200" });
    const refused = await socket.call("presence:away", {}).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(SocketError);
    expect(refused).toMatchObject({ code: "rate_limited", retryAfter: 2 });
  });

  test("wait for a connection, except typing, up to the limit", async () => {
    socket = connectTo({ queueSize: 2 });
    const errors: SocketError[] = [];
    socket.when("error", (error) => errors.push(error));
    socket.emit("typing:start", { thread_id: "42" });
    for (let n = 0; n < 3; n++) socket.emit("presence:away", {});
    await soon();
    expect(FakeWebSocket.last.sent.map((frame) => frame.event)).toEqual(["presence:away", "presence:away"]);
    expect(errors.map((error) => error.code)).toEqual(["queue_full"]);
  });

  test("reach every handler once, even if another one throws", async () => {
    const server = await connected();
    const seen: string[] = [];
    const uncaught: (() => void)[] = [];
    vi.stubGlobal("queueMicrotask", (callback: () => void) => uncaught.push(callback));
    socket.on("thread:message", () => {
      throw new Error("a mistake of the page");
    });
    const handler = ({ message_id }: { message_id: string }): unknown => seen.push(message_id);
    const off = socket.on("thread:message", handler);
    socket.on("thread:message", handler); // registered twice
    server.message("42", "201");
    off();
    server.message("42", "202");
    vi.unstubAllGlobals();
    expect(seen).toEqual(["201", "201", "202"]);
    expect(uncaught[0]).toThrow("a mistake of the page");
  });
});

describe("threads", () => {
  test("are entered once and left by the last user", async () => {
    const server = await connected();
    const [first, second] = [socket.join("42"), socket.join("42")];
    await soon();
    expect(server.events("join:thread")).toHaveLength(1);
    first();
    first();
    expect(server.events("leave:thread")).toHaveLength(0);
    second();
    expect(server.events("leave:thread")).toHaveLength(1);
  });

  test("are entered once if joined as soon as there is a connection", async () => {
    socket = connectTo();
    socket.when("status", (status) => status === "connected" && socket.join("42"));
    await soon();
    expect(FakeWebSocket.last.events("join:thread")).toHaveLength(1);
  });

  test("that were refused and then allowed are not left by the refused user", async () => {
    const server = await connected();
    const before = socket.join("42");
    await soon();
    server.say("room:left", { room: "thread:42", reason: "forbidden" });
    socket.join("42");
    before();
    expect(server.events("leave:thread")).toEqual([]);
  });

  test("report when the client is in them", async () => {
    await connected();
    const joined: string[] = [];
    socket.when("joined", ({ room }) => joined.push(room));
    const leave = socket.join("42");
    expect(socket.isIn("thread:42")).toBe(false);
    await soon();
    expect([joined, socket.isIn("thread:42")]).toEqual([["thread:42"], true]);
    leave();
    expect(socket.isIn("thread:42")).toBe(false);
  });

  test("that cannot be entered now are asked for again, with jitter", async () => {
    const server = await connected({ random: () => 0.5 });
    server.answers = { "join:thread": { code: "unavailable", message: "not now" } };
    socket.join("42");
    await soon(1400);
    expect(server.events("join:thread")).toHaveLength(1);
    server.answers = {};
    await soon(200);
    expect(server.events("join:thread")).toHaveLength(2);
    expect(socket.isIn("thread:42")).toBe(true);
  });

  test("that cannot be recovered, or had a gap, report one", async () => {
    const server = await connected({ gapDelayMax: 0 });
    const gaps: Gap[] = [];
    socket.when("gap", (gap) => gaps.push(gap));
    socket.join("42");
    await soon();
    server.say("room:gap", { room: "thread:42", reason: "lost" });
    await soon();
    expect(gaps).toEqual([{ room: "thread:42", reason: "lost" }]);
    server.fail(1006);
    await soon(510);
    // The offset after the gap is unknown.
    expect(gaps.slice(1)).toEqual([{ room: "thread:42", reason: "joined anew" }]);
    FakeWebSocket.answers = { resume: { rooms: { "thread:42": { recovered: false, offset: "300", missed: 0 } } } };
    FakeWebSocket.last.fail(1006);
    await soon(2000);
    expect(gaps.slice(2)).toEqual([{ room: "thread:42", reason: "not recovered" }]);
  });
});

describe("rooms of any kind", () => {
  test("are entered and left by their names, and a thread also by its id", async () => {
    const server = await connected();
    const leave = [socket.join("board:7"), socket.join("thread:42"), socket.join("42")];
    await soon();
    expect(server.events("join").map(({ data }) => data)).toEqual([{ room: "board:7" }]);
    expect(server.events("join:thread").map(({ data }) => data)).toEqual([{ thread_id: "42" }]);
    expect(socket.isIn("board:7")).toBe(true);
    for (const each of leave) each();
    expect(server.events("leave").map(({ data }) => data)).toEqual([{ room: "board:7" }]);
    expect(server.events("leave:thread").map(({ data }) => data)).toEqual([{ thread_id: "42" }]);
  });

  test("are kept without a join if the server joins their kind automatically", async () => {
    FakeWebSocket.rooms = { "user:7": "100", "shift:early": "100" };
    const server = await connected();
    server.say("shift:note", {}, { room: "shift:late", offset: "101" }); // as after a refresh with another claim
    server.fail(1006);
    await soon(501);
    expect(FakeWebSocket.last.events("resume")[0]?.data).toEqual({
      rooms: { "user:7": "100", "shift:early": "100", "shift:late": "101" },
    });
  });
});

describe("a silent connection", () => {
  test("is given up after a heartbeat without an answer", async () => {
    const server = await connected();
    server.answers = { heartbeat: null };
    server.silent = true;
    await soon(30_000);
    expect(server.events("heartbeat")).toHaveLength(1);
    await soon(29_000);
    expect(socket.status).toBe("connected");
    await soon(1_501);
    expect(FakeWebSocket.made).toHaveLength(2);
    expect(socket.status).toBe("connected");
  });

  test("is kept while frames arrive", async () => {
    const server = await connected();
    server.answers = { heartbeat: null };
    for (let n = 0; n < 10; n++) {
      await soon(30_000);
      server.message("42", String(n));
    }
    expect(FakeWebSocket.made).toHaveLength(1);
  });
});

describe("waking up", () => {
  let page: EventTarget;

  beforeEach(() => {
    page = new EventTarget();
    vi.stubGlobal("window", page);
    vi.stubGlobal("document", Object.assign(new EventTarget(), { visibilityState: "visible" }));
  });
  afterEach(() => vi.unstubAllGlobals());

  async function longOffline(options: Parameters<typeof connectTo>[0] = {}): Promise<void> {
    const server = await connected(options);
    FakeWebSocket.script = Array<"refuse">(9).fill("refuse");
    server.fail(1006);
    await soon(500 + 1000 + 2000 + 4000 + 8000 + 16_000 + 20);
    expect(FakeWebSocket.made).toHaveLength(7);
    expect(socket.status).toBe("offline");
  }

  test.each(["resume", "visibilitychange"])("on %s tries soon, but not more often afterwards", async (type) => {
    await longOffline();
    document.dispatchEvent(new Event(type));
    await soon(510);
    expect(FakeWebSocket.made).toHaveLength(8);
    await soon(19_000);
    expect(FakeWebSocket.made).toHaveLength(8);
  });

  test("with a network resets the backoff", async () => {
    await longOffline();
    page.dispatchEvent(new Event("online"));
    await soon(500 + 1000 + 2000 + 20);
    expect(FakeWebSocket.made).toHaveLength(10);
  });

  test("keeps a connection on which the server only refuses a heartbeat", async () => {
    const server = await connected();
    server.answers = { heartbeat: { code: "rate_limited", message: "too many frames", retry_after: 1 } };
    document.dispatchEvent(new Event("visibilitychange"));
    await soon(6000);
    expect(FakeWebSocket.made).toHaveLength(1);
    expect(server.closed).toBe(false);
  });

  test("after sleep checks the connection", async () => {
    const server = await connected();
    server.answers = { heartbeat: null };
    vi.setSystemTime(Date.now() + 3_600_000);
    await soon(5_000 + 5_000 + 5);
    expect(server.closed).toBe(true);
    await soon(501);
    expect(FakeWebSocket.made).toHaveLength(2);
    expect(socket.status).toBe("connected");
  });
});
