/** Random scripts: a page calls the socket at any moment, also in its handlers, while the server fails; then all is well. */

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { SocketError, type Socket } from "../src/index.js";
import { connectTo, soon } from "./fake.js";
import { Connection, ROOMS, World, happen, type Entry } from "./world.js";

/** Set them to look for more, or to see one again. */
const { SEEDS = "100", FIRST = "1", TRACE } = process.env;

/** What uses the socket. */
class Page {
  readonly socket: Socket;
  readonly leaves = new Map<string, (() => void)[]>(ROOMS.map((room) => [room, []]));
  /** Promises that the page was given, and those of them that were settled. */
  calls = 0;
  settled = 0;
  depth = 0;

  constructor(readonly world: World) {
    this.socket = connectTo({
      WebSocket: Connection as never,
      random: world.chance.next,
      getToken: () => world.token(),
      fetch: ((_: string, { signal }: { signal: AbortSignal }) => world.verdict(signal)) as never,
      queueSize: 5,
    });
    const { socket, world: { log } } = this;
    socket.on("thread:message", (_, { room, offset }) => (log.push(["got", room as string, Number(offset)]), this.#react()));
    socket.when("gap", ({ room }) => (log.push(["gap", room]), this.#react()));
    socket.when("joined", ({ room }) => {
      log.push(["joined", room]);
      if (!socket.isIn(room)) world.faults.push(`joined, but not in ${room}`);
      this.#react();
    });
    socket.when("left", ({ room }) => {
      log.push(["left", room]);
      if (socket.isIn(room)) world.faults.push(`left, but in ${room}`);
      if (this.leaves.has(room)) this.leaves.set(room, []);
      this.#react();
    });
    socket.when("reset", () => (log.push(["reset", ""]), (world.life += 1), this.#react()));
    for (const name of ["status", "error", "closed", "refused", "presence"] as const) socket.when(name, (value) => {
      world.trace.push(`* ${name} ${JSON.stringify(value)}`);
      if (name === "error" && !(value instanceof SocketError)) world.faults.push("no SocketError");
      this.#react();
    });
  }

  /** A handler that calls the socket. */
  #react(): void {
    if (this.world.isCalm || this.depth > 2 || !this.world.chance.of(this.world.unrest)) return;
    this.depth += 1;
    this.act();
    this.depth -= 1;
  }

  act(): void {
    const { socket, world, world: { chance } } = this;
    const room = chance.one(ROOMS);
    const { life } = world;
    const [name, action] = chance.one<readonly [string, () => void]>([
      ["join", () => this.leaves.get(room)?.push(socket.join(room))],
      ["join", () => this.leaves.get(room)?.push(socket.join(room))],
      ["join", () => this.leaves.get(room)?.push(socket.join(room))],
      ["leave", () => this.#leave(room)],
      ["emit", () => socket.emit("presence:away", { life, n: (world.made += 1), big: chance.of(0.1) ? "x".repeat(400) : "" } as never)],
      ["emit", () => socket.emit("typing:start", { thread_id: "1", life } as never)],
      ["call", () => this.#call()],
      ["wake", () => socket.wake()],
      ["connected", () => this.#expect(socket.connected())],
      ["reconnect", () => socket.reconnect()],
      ["connect", () => socket.connect()],
      ["connect", () => socket.connect()],
      ["disconnect", () => chance.of(0.3) && socket.disconnect()],
      ["disconnect, connect", () => chance.of(0.3) && (socket.disconnect(), socket.connect())],
      ["another user", () => chance.of(0.3) && ((world.user = chance.one(["7", "8"])), socket.disconnect(), socket.connect())],
    ]);
    world.trace.push(`${name} ${room}`);
    action();
  }

  #leave(room: string): void {
    const all = this.leaves.get(room) as (() => void)[];
    const [leave] = all.splice(this.world.chance.below(all.length), 1);
    leave?.();
    if (all.length === 0) this.world.log.push(["leave", room]);
  }

  /** Counts a promise that the socket gave, and its end. */
  #expect(promise: Promise<unknown>): void {
    this.calls += 1;
    const done = (): number => (this.settled += 1);
    void promise.then(done, done);
  }

  #call(): void {
    const { life, chance } = this.world;
    const data = { life, n: (this.world.made += 1) };
    this.#expect(this.socket.call("presence:online", data as never, { timeout: 1 + chance.below(20_000) }));
  }
}

/** Every hole in what was received of a room is told. */
function holes(log: Entry[]): string[] {
  const faults: string[] = [];
  const last = new Map<string, number>();
  const told = (room: string, from: number): boolean =>
    log.slice(from).some(([what, name]) => what !== "got" && (name === room || what === "reset"));
  const since = new Map<string, number>();
  log.forEach(([what, room, offset], index) => {
    if (what === "reset") last.clear();
    if (what === "leave" || what === "left") last.delete(room);
    if (what !== "got") return;
    const before = last.get(room);
    if (before !== undefined && (offset as number) <= before) faults.push(`${room}: ${offset} after ${before}`);
    if (before !== undefined && (offset as number) > before + 1 && !told(room, since.get(room) as number)) {
      faults.push(`${room}: ${offset} after ${before} without a gap`);
    }
    last.set(room, offset as number);
    since.set(room, index);
  });
  return faults;
}

/** What holds at any moment. */
function check({ world, socket }: Page): void {
  const isConnected = world.open.some((each) => each.isKnown);
  if (isConnected !== (socket.status === "connected")) world.faults.push(`is ${socket.status} with ${world.open.length} sockets`);
  if (isConnected !== (socket.connectionId !== undefined)) world.faults.push(`has the id ${socket.connectionId}`);
  if (socket.nextAttempt !== undefined && socket.status !== "offline") world.faults.push(`plans an attempt while ${socket.status}`);
  if (/stopped|denied/.test(socket.status) && world.open.length > 0) world.faults.push(`is ${socket.status} with a socket`);
}

/** A page learns that it is in a room before it gets something of it. */
function early(log: Entry[]): string[] {
  const inside = new Map<string, boolean>();
  return log.flatMap(([what, room]) => {
    if (what === "reset") inside.forEach((_, each) => inside.set(each, false));
    if (what === "joined") inside.set(room, true);
    if (what === "left") inside.set(room, false);
    if (what === "leave") inside.set(room, true); // what is on its way still comes
    return what === "got" && !inside.get(room) && ROOMS.includes(room) ? [`${room}: early`] : [];
  });
}

async function settle(page: Page): Promise<void> {
  const { world, socket } = page;
  world.isCalm = true;
  world.forbidden.clear();
  await soon(700_000);
  socket.connect();
  for (let round = 0; round < 4; round += 1) await soon(300_000);
  for (const room of [...ROOMS, ...world.automatic]) world.publish(room);
  await soon(10_000);
  if (socket.status !== "connected") world.faults.push(`is ${socket.status}`);
  const live = world.open[0]?.live ?? new Set();
  for (const room of [...ROOMS, ...world.automatic]) {
    const wanted = page.leaves.get(room);
    if (wanted && live.has(room) !== wanted.length > 0) world.faults.push(`server: ${room} ${live.has(room)}, wanted ${wanted.length}`);
    if (socket.isIn(room) !== live.has(room)) world.faults.push(`isIn ${room}: ${socket.isIn(room)}, server: ${live.has(room)}`);
    const got = world.log.some(([what, name, offset]) => what === "got" && name === room && offset === world.end(room));
    if (live.has(room) && !got) world.faults.push(`${room}: the last was not received`);
  }
}

async function run(seed: number): Promise<string[]> {
  const world = new World(seed);
  const page = new Page(world);
  for (let step = 0; step < 60; step += 1) {
    if (world.chance.of(0.5)) page.act();
    else happen(world);
    await soon(world.chance.one([0, 0, 1, 10, 50, 500, 5000, 31_000]));
    check(page);
    if (world.faults.length) break;
  }
  if (world.faults.length === 0) {
    await settle(page);
    world.faults.push(...holes(world.log), ...early(world.log));
  }
  if (page.calls !== page.settled) world.faults.push(`${page.settled} of ${page.calls} calls were settled`);
  world.isCalm = true; // no handler connects again
  page.socket.disconnect();
  await soon(0);
  if (page.calls !== page.settled) world.faults.push(`${page.settled} of ${page.calls} calls were settled after disconnect`);
  if (world.open.length) world.faults.push("a socket is open");
  await soon(30_000); // the server's own timers
  if (vi.getTimerCount()) world.faults.push(`${vi.getTimerCount()} timers are left`);
  if (world.faults.length && TRACE) console.log(world.trace.join("\n"), world.log);
  return world.faults;
}

beforeEach(() => {
  vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
});

afterEach(() => {
  vi.useRealTimers();
});

test("random scripts end as they should", { timeout: 600_000 }, async () => {
  const found: Record<string, string[]> = {};
  for (let seed = Number(FIRST); seed < Number(FIRST) + Number(SEEDS); seed += 1) {
    const faults = await run(seed);
    vi.clearAllTimers();
    if (faults.length) found[seed] = faults;
  }
  expect(found).toEqual({});
});
