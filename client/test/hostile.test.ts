/** A server that says anything: nothing throws, every other room goes on, and what may have been missed is told. */

import { expect, test } from "vitest";
import type { Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
let told: string[];
leavesNothing(() => socket);

const ODD: unknown[] = [undefined, null, 0, 5, "", "odd", true, [], ["odd"], {}, { odd: null }, { toString: 1 }];
const EVENTS = [
  ...["room:gap", "room:left", "presence:state", "attendant:online", "auth:expiring", "thread:typing", "thread:message", "ack", "error"],
  ...["connection:ready", "never:heard", "", null, 5, {}],
];

async function connected(): Promise<FakeWebSocket> {
  socket = connectTo({ gapDelayMax: 1 });
  told = [];
  for (const name of ["joined", "left", "gap"] as const) socket.when(name, ({ room }) => told.push(name + " " + textOf(room)));
  socket.on("thread:message", (_, where) => told.push(textOf(where.room) + " " + textOf(where.offset)));
  socket.join("42");
  socket.join("43");
  await soon();
  for (const thread of ["42", "43"]) FakeWebSocket.last.message(thread, "201");
  told.length = 0;
  return FakeWebSocket.last;
}

const textOf = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));
const say = (frame: object): void => FakeWebSocket.last.onmessage?.({ data: JSON.stringify(frame) });

/** The client receives what is published in these threads, each time once. */
async function expectLive(...threads: string[]): Promise<void> {
  told.length = 0;
  for (const thread of threads) FakeWebSocket.last.message(thread, "900");
  await soon();
  expect(told).toEqual(threads.map((thread) => `thread:${thread} 900`));
}

test.each(ODD.map((rooms) => [JSON.stringify(rooms), rooms]))("a resume that is answered with the rooms %s is asked for again", async (_, rooms) => {
  (await connected()).fail(1006);
  FakeWebSocket.answers = { resume: { rooms } };
  await soon(510);
  expect(socket.status).toBe("connected");
  FakeWebSocket.last.answers = {};
  await soon(2010);
  expect(told).toEqual([]);
  await expectLive("42", "43");
});

test.each(ODD.map((found) => [JSON.stringify(found), found]))("a room that a resume answers with %s is live, after a gap, and so are the others", async (text, found) => {
  (await connected()).fail(1006);
  const others = { "user:7": { recovered: true, offset: "100", missed: 0 }, "thread:43": { recovered: true, offset: "201", missed: 0 } };
  FakeWebSocket.answers = { resume: { rooms: { "thread:42": found, "thread:99": found, "odd": found, ...others } } };
  await soon(510);
  if (text === undefined) {
    await expectLive("43"); // JSON leaves it out, so it is asked for again
    return;
  }
  await soon(10);
  expect(told).toEqual(["gap thread:42"]);
  await expectLive("42", "43");
});

test.each(ODD.map((offset) => [JSON.stringify(offset), offset]))("an offset that is %s is never sent back", async (_, offset) => {
  FakeWebSocket.answers = { "join:thread": { room: "thread:42", offset } };
  const server = await connected();
  for (const event of ["thread:message", "never:heard"]) say({ event, data: {}, room: "thread:42", offset });
  server.fail(1006);
  FakeWebSocket.answers = {};
  await soon(1000);
  for (const { data } of FakeWebSocket.last.events("resume")) {
    for (const each of Object.values(data.rooms as object)) expect([typeof each, each === ""]).toEqual(["string", false]);
  }
  await expectLive("42", "43");
});

test.each(ODD.map((data) => [JSON.stringify(data), data]))("an answer whose data is %s leaves no room behind", async (_, data) => {
  FakeWebSocket.answers = { "join:thread": null };
  const server = await connected();
  for (const { id } of server.events("join:thread")) for (const event of ["ack", "error"]) say({ event, id, data });
  server.answers = {};
  await soon(15_000);
  expect(socket.isIn("42")).toBe(true);
  await expectLive("42", "43");
});

test.each(EVENTS.map((event) => [event]))("a frame of the event %j whose parts are odd ends nothing", async (event) => {
  await connected();
  for (const odd of ODD) {
    say({ event, data: odd });
    for (const key of ["room", "reason", "group", "members", "offset", "user_id", "name", "code", "message", "retry_after", "rooms", "limits"]) {
      const fields = { connection_id: "c1", user_id: "7", role: "attendant", heartbeat_interval: 30, rooms: {}, group: "sales", members: [], offset: "5" };
      say({ event, data: { ...fields, [key]: odd } });
      say({ event, data: { ...fields, members: [{ user_id: "1", name: "Ana", status: "online", since: "", [key]: odd }, odd] } });
      say({ event, data: fields, [key]: odd, id: odd });
      if (event !== "connection:ready") say({ event, data: fields, room: odd, offset: odd });
    }
  }
  await soon(700_000);
  socket.reconnect();
  await soon(20_000);
  expect(socket.status).toBe("connected");
  socket.join("44");
  await soon(20_000);
  await expectLive("44");
  say({ event: "presence:state", data: { group: "sales", members: [], offset: "1" } });
  say({ event: "attendant:online", data: { user_id: "1", name: "Ana", status: "online", since: "" }, room: "presence:sales", offset: "2" });
  expect(socket.presence("sales").map(({ name }) => name)).toEqual(["Ana"]);
});

test.each([-5, 1e-9, "odd", null, {}, 1e308])("limits of %j leave nothing unsent", async (odd) => {
  FakeWebSocket.limits = { frame_bytes: 65_536, rate: 50, burst: odd as number, rooms: 200 };
  socket = connectTo();
  for (let n = 0; n < 5; n++) socket.emit("presence:away", {});
  await soon(1000);
  expect(FakeWebSocket.last.events("presence:away")).toHaveLength(5);
  if (odd === 1e-9) return; // a rate that is a rate
  FakeWebSocket.limits = { frame_bytes: 65_536, rate: odd as number, burst: 1, rooms: 200 };
  socket.reconnect();
  await soon(1000);
  for (let n = 0; n < 5; n++) socket.emit("presence:away", {});
  await soon(1000);
  expect(FakeWebSocket.last.events("presence:away")).toHaveLength(5);
});

test.each(ODD.map((odd) => [JSON.stringify(odd), odd]))("a refusal whose parts are %s is tried again", async (_, odd) => {
  for (const body of [odd, { error: odd }, { error: { code: odd, message: odd } }]) {
    FakeWebSocket.script = ["refuse"];
    socket = connectTo({ fetch: () => Promise.resolve(new Response(JSON.stringify(body), { status: 503, headers: { "Retry-After": "1" } })) });
    const refusals: unknown[] = [];
    socket.when("refused", ({ code, message }) => refusals.push(typeof code, typeof message));
    await soon(2000);
    expect([socket.status, refusals.every((type) => type === "string")]).toEqual(["connected", true]);
    socket.disconnect();
  }
});
