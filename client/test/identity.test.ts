import { expect, test } from "vitest";
import type { Gap, Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, token, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);
const bearers = (): (string | undefined)[] => FakeWebSocket.made.map((each) => each.protocols[1]?.split(".")[1]);

/** Ana's connection in thread 42, with presence; `log.user` is who is logged in next. */
async function ana(): Promise<{ login: { user: string }; resets: string[] }> {
  const login = { user: "ana" };
  const resets: string[] = [];
  socket = connectTo({ getToken: () => token(undefined, login.user) });
  socket.when("reset", ({ reason }) => resets.push(reason));
  socket.join("42");
  await soon();
  FakeWebSocket.last.message("42", "205");
  const members = [{ user_id: "7", name: "Ana", status: "online", since: "" }];
  FakeWebSocket.last.say("presence:state", { group: "sales", members, total: 1, offset: "1" });
  return { login, resets };
}

function bob(): void {
  FakeWebSocket.user = { user_id: "8", role: "attendant" };
  FakeWebSocket.rooms = { "user:8": "300" };
}

test("after disconnect() the next user gets nothing of the last one", async () => {
  const { login, resets } = await ana();
  FakeWebSocket.last.answers = { "presence:away": null };
  const call = expect(socket.call("presence:away", {})).rejects.toMatchObject({ code: "closed" });
  await soon();
  FakeWebSocket.last.fail(1006);
  await call;
  socket.emit("presence:away", {});
  const waiting = expect(socket.call("presence:online", {})).rejects.toMatchObject({ code: "closed" });
  socket.disconnect();
  await waiting;
  expect([resets, socket.presence("sales"), socket.isIn("42")]).toEqual([["stopped"], [], false]);
  login.user = "bob";
  bob();
  socket.connect();
  await soon();
  expect(bearers()).toEqual(["ana", "bob"]);
  expect(FakeWebSocket.last.url).toBe("ws://server/hub/");
  expect(FakeWebSocket.last.sent.map((frame) => frame.event)).toEqual(["join:thread"]);
});

test("after denied, too", async () => {
  const { login, resets } = await ana();
  FakeWebSocket.last.fail(4403);
  expect([socket.status, resets, socket.refusal?.status]).toEqual(["denied", ["denied"], 4403]);
  login.user = "bob";
  socket.connect();
  await soon();
  expect(bearers()).toEqual(["ana", "bob"]);
  expect(FakeWebSocket.last.events("resume")).toEqual([]);
});

test("a token that was asked for before disconnect() is not used after it", async () => {
  const asked: ((token: string) => void)[] = [];
  socket = connectTo({ getToken: () => new Promise((resolve) => asked.push(resolve)) });
  await soon();
  socket.disconnect();
  socket.connect();
  await soon();
  asked[0]?.(token(undefined, "ana"));
  await soon();
  expect(bearers()).toEqual([]);
  asked[1]?.(token(undefined, "bob"));
  await soon();
  expect(bearers()).toEqual(["bob"]);
  FakeWebSocket.last.fail(1006);
  await soon(501);
  expect(bearers()).toEqual(["bob", "bob"]);
});

test.each([
  ["user", { user_id: "8", role: "attendant" }],
  ["role", { user_id: "7", role: "admin" }],
])("another %s on a reconnect gets no event, offset or presence of the last one", async (_, who) => {
  const { resets } = await ana();
  const gaps: Gap[] = [];
  socket.when("gap", (gap) => gaps.push(gap));
  FakeWebSocket.user = who;
  FakeWebSocket.rooms = { "user:8": "300" };
  FakeWebSocket.last.fail(1006);
  socket.emit("presence:away", {});
  const call = expect(socket.call("presence:online", {})).rejects.toMatchObject({ code: "closed" });
  await soon(501);
  await call;
  expect(resets).toEqual(["user"]);
  const back = FakeWebSocket.last;
  // The connection was opened with ?resume=1, so that the server waits for this.
  expect(back.events("resume").map(({ data }) => data)).toEqual([{ rooms: { "user:8": "300" } }]);
  expect(back.sent.map((frame) => frame.event)).toEqual(["resume", "join:thread"]);
  expect(socket.presence("sales")).toEqual([]);
  await soon(2000);
  expect(gaps).toEqual([{ room: "thread:42", reason: "joined anew" }]); // what the page shows is of the last user
});

test("the same user keeps everything on a reconnect", async () => {
  const { resets } = await ana();
  FakeWebSocket.last.fail(1006);
  socket.emit("presence:away", {});
  await soon(501);
  expect(resets).toEqual([]);
  expect(FakeWebSocket.last.sent.map((frame) => frame.event)).toEqual(["resume", "presence:away"]);
});

test.each(["offline", "connecting", "connected", "closed", "refused"] as const)("disconnect() by a handler of %s is the end", async (when) => {
  FakeWebSocket.script = ["refuse"];
  socket = connectTo({ fetch: () => Promise.resolve(new Response(null, { status: 502 })) });
  const stop = (): void => socket.disconnect();
  if (when === "closed" || when === "refused") socket.when(when, stop);
  else socket.when("status", (status) => status === when && stop());
  await soon(2000);
  if (when === "closed") FakeWebSocket.last.fail(1006);
  const made = FakeWebSocket.made.length;
  await soon(60_000);
  expect([socket.status, FakeWebSocket.made.length, FakeWebSocket.open]).toEqual(["stopped", made, []]);
});
