import { describe, expect, test } from "vitest";
import type { Socket, SocketError } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, token, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

describe("a call", () => {
  test("waits for a connection, as an event does, and is sent in order with them", async () => {
    socket = connectTo();
    socket.emit("presence:away", {});
    const call = socket.call("presence:online", {});
    await soon();
    await expect(call).resolves.toEqual({});
    expect(FakeWebSocket.last.sent.map((frame) => frame.event)).toEqual(["presence:away", "presence:online"]);
  });

  test("that waits survives a lost attempt; one that was sent does not survive its connection", async () => {
    socket = connectTo();
    await soon();
    FakeWebSocket.last.answers = { "presence:away": null };
    const sent = expect(socket.call("presence:away", {})).rejects.toMatchObject({ code: "closed" });
    await soon();
    FakeWebSocket.last.fail(1006);
    await sent;
    const waiting = socket.call("presence:online", {});
    await soon(501);
    await expect(waiting).resolves.toEqual({});
  });

  test.each([null, NaN, -1, 0, Infinity, "5"])("does not take %j for its timeout", async (timeout) => {
    socket = connectTo();
    await soon();
    await expect(socket.call("presence:away", {}, { timeout: timeout as number })).rejects.toThrow("timeout: expected");
  });

  test("without a connection to come is refused at once", async () => {
    socket = connectTo({ autoConnect: false });
    await expect(socket.call("presence:away", {})).rejects.toMatchObject({ code: "closed" });
  });
});

describe("connected()", () => {
  test("waits for the connection", async () => {
    socket = connectTo();
    const connected = socket.connected();
    await soon();
    await connected;
    await socket.connected();
    expect(socket.status).toBe("connected");
  });

  test("rejects when the socket is stopped meanwhile", async () => {
    FakeWebSocket.script = ["hang"];
    socket = connectTo();
    const connected = expect(socket.connected()).rejects.toMatchObject({ code: "closed" });
    await soon();
    socket.disconnect();
    await connected;
  });
});

describe("the url", () => {
  test.each([["at once", (url: string) => url], ["later", (url: string) => Promise.resolve(url)]])("may be a function that returns it %s, for each attempt", async (_, give) => {
    const urls = ["ws://one/hub/", "ws://two/hub/"];
    socket = connectTo({ url: () => give(urls.shift() ?? "") });
    await soon();
    FakeWebSocket.last.fail(1006);
    await soon(501);
    expect(FakeWebSocket.made.map(({ url }) => url)).toEqual(["ws://one/hub/", "ws://two/hub/?resume=1"]);
  });

  test("is asked for again when the function fails; the error does not quote what it said", async () => {
    let failures = 1;
    const errors: SocketError[] = [];
    socket = connectTo({
      url: () => {
        if (failures-- > 0) throw new Error("eyJ.secret.token");
        return "ws://server/hub/";
      },
    });
    socket.when("error", (error) => errors.push(error));
    await soon(501);
    expect(socket.status).toBe("connected");
    expect(errors.map(({ message }) => message)).toEqual(["getToken() or url() failed"]);
    expect(errors[0]?.cause).toEqual(new Error("eyJ.secret.token"));
  });
});

describe("limits", () => {
  test("are kept: 100 waiting events beside 60 joins lose none, and the joins come first", async () => {
    FakeWebSocket.limits = { frame_bytes: 65_536, rate: 50, burst: 100, rooms: 200 };
    socket = connectTo();
    for (let n = 0; n < 60; n++) socket.join(n);
    for (let n = 0; n < 100; n++) socket.emit("presence:away", {});
    await soon();
    const { sent } = FakeWebSocket.last;
    expect(sent.slice(0, 60).every(({ event }) => event === "join:thread")).toBe(true);
    expect(sent).toHaveLength(80); // with room for pongs
    await soon(1000);
    expect(sent.length).toBeLessThanOrEqual(100 + 50);
    await soon(2000);
    expect(FakeWebSocket.last.events("presence:away")).toHaveLength(100);
    expect(FakeWebSocket.last.events("join:thread")).toHaveLength(60);
  });

  test("that the server counts differently stop everything for the time that it names", async () => {
    FakeWebSocket.limits = { frame_bytes: 65_536, rate: 50, burst: 100, rooms: 200 };
    socket = connectTo();
    await soon();
    FakeWebSocket.last.say("error", { code: "rate_limited", message: "too many frames", retry_after: 3 });
    for (let n = 0; n < 5; n++) socket.emit("presence:away", {});
    await soon(2900);
    expect(FakeWebSocket.last.sent).toEqual([]);
    await soon(500);
    expect(FakeWebSocket.last.events("presence:away")).toHaveLength(5);
  });

  test.each([
    [0, 1],
    [-1, 1],
    [null, 1],
    ["soon", 1],
    [{}, 1],
    ["3", 3],
    [1e300, 600],
  ])("that name the time %j stop everything for %i s", async (given, seconds) => {
    FakeWebSocket.limits = { frame_bytes: 65536, rate: 100, burst: 200, rooms: 200 };
    FakeWebSocket.heartbeat = 0;
    socket = connectTo();
    await soon();
    const server = FakeWebSocket.last;
    server.answers = { "join:thread": { code: "rate_limited", message: "too many frames", retry_after: given } };
    socket.join("42");
    await soon();
    socket.emit("presence:away", {});
    await soon(seconds * 1000 - 10);
    expect([server.events("presence:away").length, server.events("join:thread").length]).toEqual([0, 1]);
    server.answers = {};
    await soon(seconds * 1000 + 20);
    expect([server.events("presence:away").length, server.events("join:thread").length]).toEqual([1, 2]);
  });

  test("hold back no heartbeat, and no fresh token, however long the server wants a pause", async () => {
    FakeWebSocket.limits = { frame_bytes: 65_536, rate: 50, burst: 100, rooms: 200 };
    socket = connectTo();
    await soon();
    const server = FakeWebSocket.last;
    server.say("error", { code: "rate_limited", message: "too many frames", retry_after: 600 });
    socket.emit("presence:away", {});
    socket.join("42");
    await soon(95_000);
    server.say("auth:expiring", { expires_at: "" });
    socket.wake();
    await soon();
    expect(server.sent.map(({ event }) => event)).toEqual([...Array<string>(4).fill("heartbeat"), "auth:refresh"]);
    expect([socket.status, FakeWebSocket.made.length]).toEqual(["connected", 1]);
    await soon(600_000);
    expect([server.events("presence:away").length, server.events("join:thread").length, server.closed]).toEqual([1, 1, false]);
  });

  test("that are reached hold back no heartbeat, and a token that is too large is not sent", async () => {
    FakeWebSocket.limits = { frame_bytes: 300, rate: 1, burst: 1, rooms: 200 };
    let mark = "x";
    socket = connectTo({ queueSize: 500, getToken: () => token(undefined, mark) });
    const errors: string[] = [];
    socket.when("error", ({ code }) => errors.push(code));
    await soon();
    for (let n = 0; n < 400; n++) socket.emit("presence:away", {});
    await soon(95_000);
    expect(FakeWebSocket.last.events("heartbeat")).toHaveLength(3);
    mark = "x".repeat(300);
    FakeWebSocket.last.say("auth:expiring", { expires_at: "" });
    await soon();
    expect([errors, socket.status, FakeWebSocket.made.length]).toEqual([["too_large"], "connected", 1]);
  });

  test("of 0 are none", async () => {
    FakeWebSocket.limits = { frame_bytes: 0, rate: 0, burst: 0, rooms: 0 };
    socket = connectTo({ queueSize: 1000 });
    for (let n = 0; n < 500; n++) socket.emit("presence:away", {});
    socket.emit("cursor:move", { thread_id: "1", position: "" });
    await soon();
    socket.emit("cursor:move", { thread_id: "1", position: "x".repeat(100_000) });
    expect(FakeWebSocket.last.sent).toHaveLength(501);
  });

  test("of a frame's bytes refuse a larger one before it is sent, counted in UTF-8", async () => {
    FakeWebSocket.limits = { frame_bytes: 200, rate: 50, burst: 100, rooms: 200 };
    socket = connectTo();
    const errors: string[] = [];
    socket.when("error", ({ code }) => errors.push(code));
    await soon();
    const bytes = (position: string): number =>
      new TextEncoder().encode(JSON.stringify({ event: "cursor:move", data: { thread_id: "1", position } })).length;
    for (const letter of ["x", "é", "€", "😀", "\ud83d"]) {
      const most = Math.floor((200 - bytes("")) / (bytes(letter) - bytes("")));
      socket.emit("cursor:move", { thread_id: 1, position: letter.repeat(most) });
      expect(errors).toEqual([]);
      socket.emit("cursor:move", { thread_id: 1, position: letter.repeat(most + 1) });
      expect(errors.splice(0)).toEqual(["too_large"]);
    }
    await expect(socket.call("cursor:move", { thread_id: 1, position: "x".repeat(300) })).rejects.toMatchObject({ code: "too_large" });
    expect(FakeWebSocket.last.events("cursor:move")).toHaveLength(5);
    expect(socket.status).toBe("connected");
  });
});

describe("ids", () => {
  test("are strings whatever they were given as", async () => {
    socket = connectTo();
    for (const id of [0, 42, 9_007_199_254_740_993n]) socket.join(id);
    socket.join("board:E\u0301");
    await soon();
    socket.emit("typing:start", { thread_id: 42 });
    expect(FakeWebSocket.last.events("join:thread").map(({ data }) => data["thread_id"])).toEqual(["0", "42", "9007199254740993"]);
    expect(FakeWebSocket.last.events("typing:start")[0]?.data).toEqual({ thread_id: "42" });
    expect([socket.isIn(42), socket.isIn("42"), socket.isIn("thread:42"), socket.isIn("board:\u00c9")]).toEqual([true, true, true, true]);
  });

  test.each([4.5, NaN, 2 ** 53, undefined, null, {}, true])("cannot be %s", async (id) => {
    socket = connectTo();
    await soon();
    expect(() => socket.join(id as never)).toThrow(TypeError);
    expect(() => socket.emit("typing:start", { thread_id: id as never })).toThrow(TypeError);
    await expect(socket.call("join:thread", { thread_id: id as never })).rejects.toThrow(TypeError);
    await soon(20_000);
  });
});

describe("a resume of more rooms than fit a frame", () => {
  test("is sent in parts, and every room is recovered once", async () => {
    socket = connectTo({ reconnectionDelay: 10, gapDelayMax: 0 });
    const errors: SocketError[] = [];
    const gaps: string[] = [];
    socket.when("error", (error) => errors.push(error));
    socket.when("gap", ({ room }) => gaps.push(room));
    const threads = Array.from({ length: 40 }, (_, index) => `thread-${index}`);
    for (const thread of threads) socket.join(thread);
    await soon();
    FakeWebSocket.limits = { frame_bytes: 400, rate: 0, burst: 0, rooms: 0 };
    FakeWebSocket.last.fail(1006);
    await soon(20);
    const frames = FakeWebSocket.last.events("resume");
    expect(frames.length).toBeGreaterThan(2);
    for (const frame of frames) expect(JSON.stringify(frame).length).toBeLessThanOrEqual(400);
    const resumed = frames.flatMap(({ data }) => Object.keys(data["rooms"] as object));
    expect(resumed.sort()).toEqual(["user:7", ...threads.map((thread) => `thread:${thread}`)].sort());
    await soon(60_000);
    expect([FakeWebSocket.last.events("resume").length, errors, gaps]).toEqual([frames.length, [], []]);
  });
});

test("a token that a server quotes is in no error and no close reason", async () => {
  const secret = token(undefined, "secret");
  socket = connectTo({ getToken: () => secret });
  const told: string[] = [];
  socket.when("error", ({ message }) => told.push(message));
  socket.when("closed", ({ reason }) => told.push(reason));
  socket.when("refused", ({ message }) => told.push(message));
  await soon();
  FakeWebSocket.last.say("error", { code: "internal", message: `what is ${secret}?` });
  FakeWebSocket.last.onclose?.({ code: 4403, reason: `${secret} was revoked` });
  expect([told, socket.refusal?.message]).toEqual([["what is …?", "… was revoked", "… was revoked"], "… was revoked"]);
});
