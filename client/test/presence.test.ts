import { beforeEach, describe, expect, test } from "vitest";
import type { Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

const member = (user: string, status = "online") => ({ user_id: user, name: user.toUpperCase(), status, since: "" });
const state = (offset: string, ...users: string[]): void =>
  FakeWebSocket.last.say("presence:state", {
    group: "sales",
    members: users.map((user) => member(user)),
    total: users.length,
    offset,
  });
const change = (user: string, status: string, offset: string, room = "presence:sales"): void =>
  FakeWebSocket.last.say(`attendant:${status}`, member(user, status), { room, offset });
const listed = (): string[] => socket.presence("sales").map((each) => `${each.user_id} ${each.status}`);

beforeEach(async () => {
  socket = connectTo();
  await soon();
});

describe("the members of a group", () => {
  test("are the last state and every change since, sorted by name", () => {
    state("100", "eve", "bob");
    expect(listed()).toEqual(["bob online", "eve online"]);
    change("ana", "online", "101");
    change("bob", "away", "102");
    change("zoe", "online", "103", "presence:attendants");
    expect(listed()).toEqual(["ana online", "bob away", "eve online"]);
    change("bob", "offline", "104");
    expect(listed()).toEqual(["ana online", "eve online"]);
    expect(socket.presence("attendants")).toEqual([]); // a group without a state
  });

  test("are the same list until a change is reported", () => {
    const told: string[] = [];
    socket.when("presence", ({ group }) => told.push(group));
    state("100", "bob");
    const before = socket.presence("sales");
    FakeWebSocket.last.message("42", "1");
    change("bob", "away", "101", "presence:attendants");
    expect(socket.presence("sales")).toBe(before);
    expect(told).toEqual(["sales"]);
  });

  test("ignore changes older than the state that are replayed after a reconnect", () => {
    state("1000", "bob");
    change("eve", "offline", "999");
    change("bob", "offline", "998");
    expect(listed()).toEqual(["bob online"]);
    change("bob", "away", "1001");
    expect(listed()).toEqual(["bob away"]);
  });

  test("keep a change that overtook a state", () => {
    state("100", "bob", "eve");
    change("ana", "online", "102");
    change("eve", "offline", "103");
    state("101", "bob", "eve");
    expect(listed()).toEqual(["ana online", "bob online"]);
    state("110", "bob", "eve");
    expect(listed()).toEqual(["bob online", "eve online"]);
  });

  test("are the last known list without a connection, until the server sends a new state", async () => {
    state("100", "bob", "eve");
    change("ana", "online", "105");
    FakeWebSocket.last.fail(1006);
    expect(listed()).toEqual(["ana online", "bob online", "eve online"]);
    await soon(501);
    state("103", "bob"); // after a data loss offsets start elsewhere
    expect(listed()).toEqual(["bob online"]);
  });

  test("follow the server after a data loss, wherever its offsets start", () => {
    state("200", "bob", "eve");
    FakeWebSocket.last.say("room:gap", { room: "presence:sales", reason: "lost" });
    expect(listed()).toEqual(["bob online", "eve online"]);
    change("eve", "offline", "102");
    change("zoe", "online", "103");
    state("102", "bob");
    expect(listed()).toEqual(["bob online", "zoe online"]);
  });

  test.each(["denied", "stopped"])("is empty once the connection is %s", async (status) => {
    state("100", "bob");
    const told: string[] = [];
    socket.when("presence", ({ group }) => told.push(group));
    if (status === "denied") FakeWebSocket.last.fail(4403);
    else socket.disconnect();
    expect(socket.status).toBe(status);
    expect([socket.presence("sales"), told]).toEqual([[], ["sales"]]);
  });

  test("are forgotten when the client loses the group", () => {
    state("100", "bob");
    FakeWebSocket.last.say("room:left", { room: "presence:sales", reason: "forbidden" });
    expect(socket.presence("sales")).toEqual([]);
  });
});
