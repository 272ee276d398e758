/** A server with rooms that have histories, which fails in every way it may, as random numbers decide. */

import { token } from "./fake.js";

export const ROOMS = ["thread:1", "thread:2", "board:1"];
const CODES = [1000, 1001, 1002, 1006, 1009, 1011, 1012, 4400, 4401, 4403, 4408, 4409, 4413, 4429];
const AFTER = [undefined, null, 0, -1, 0.1, 3, "2", "soon", 1e9, 1e300, {}];

/** A generator of random numbers that repeats itself from a seed (mulberry32). */
export class Chance {
  constructor(private seed: number) {}

  readonly next = (): number => {
    this.seed = (this.seed + 0x6d2b79f5) | 0;
    let t = Math.imul(this.seed ^ (this.seed >>> 15), 1 | this.seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };

  of(share: number): boolean {
    return this.next() < share;
  }

  below(most: number): number {
    return Math.floor(this.next() * most);
  }

  one<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

type Data = Record<string, unknown>;

/** What happened, in the order in which the page saw it. */
export type Entry = [what: "got" | "gap" | "joined" | "left" | "leave" | "reset", room: string, offset?: number];

export class World {
  static now: World;
  readonly chance: Chance;
  /** Whether everything works from now on. */
  isCalm = false;
  user = "7";
  readonly ends = new Map<string, number>();
  /** The oldest offset from which a room can be recovered. */
  readonly trimmed = new Map<string, number>();
  readonly forbidden = new Set<string>();
  readonly connections: Connection[] = [];
  /** The share of events whose handlers call the socket. */
  readonly unrest: number;
  readonly faults: string[] = [];
  readonly log: Entry[] = [];
  readonly trace: string[] = [];
  /** How often everything was discarded. */
  life = 0;
  /** The number of the last event of the page that was sent, and of the last that it wanted to send. */
  sent = 0;
  made = 0;

  constructor(seed: number) {
    this.chance = new Chance(seed);
    this.unrest = this.chance.one([0, 0.05, 0.3]);
    World.now = this;
  }

  get automatic(): string[] {
    return [`user:${this.user}`, "presence:a"];
  }

  end(room: string): number {
    return this.ends.get(room) ?? 100;
  }

  get open(): Connection[] {
    return this.connections.filter((each) => !each.closed);
  }

  /** What the page's `getToken` gives, if it gives anything. */
  token(): string | Promise<string> {
    const { chance, isCalm, user } = this;
    const fresh = token(Date.now() / 1000 + (isCalm ? 3600 : chance.one([5, 60, 3600])), `u${user}`);
    if (isCalm || chance.of(0.7)) return fresh;
    if (chance.of(0.3)) throw new Error("no token");
    if (chance.of(0.3)) return new Promise(() => undefined);
    return new Promise((resolve) => setTimeout(() => resolve(fresh), chance.below(20_000)));
  }

  /** What the server, or the network, says of a handshake that it refused. */
  verdict(signal: AbortSignal): Promise<Response> {
    const { chance, isCalm } = this;
    if (isCalm || chance.of(0.3)) return Promise.resolve(new Response(null, { status: 204 }));
    if (chance.of(0.3)) return Promise.reject(new Error("no network"));
    if (chance.of(0.2)) return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("aborted"))));
    const headers: Record<string, string> = chance.of(0.5) ? { "Retry-After": chance.one(["1", "-5", "x", "1e30"]) } : {};
    return Promise.resolve(new Response(null, { status: chance.one([401, 403, 404, 500, 503]), headers }));
  }

  /** Publishes in a room; or loses it, which is told. */
  publish(room: string, isLost = false): void {
    const offset = this.end(room) + 1;
    this.ends.set(room, offset);
    if (isLost) this.trimmed.set(room, offset);
    for (const each of this.open) {
      if (!each.live.has(room)) continue;
      if (isLost) each.say("room:gap", { room, reason: "lost" });
      else each.say("thread:message", { thread_id: "1", message_id: offset }, { room, offset: String(offset) });
    }
  }

  expel(room: string): void {
    for (const each of this.open) if (each.live.delete(room)) each.say("room:left", { room, reason: "revoked" });
  }
}

/** A connection to it. */
export class Connection {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason?: string }) => void) | null = null;
  onerror: (() => void) | null = null;
  readonly world = World.now;
  readonly live = new Set<string>();
  readonly user: string;
  readonly held = new Set<string>();
  closed = false;
  isReady = false;
  /** Whether the client has its first frame. */
  isKnown = false;
  isSilent = false;
  #coming: string[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {
    const { world } = this;
    this.user = (protocols[1] as string).slice("bearer.u".length).split(".")[0] as string;
    world.trace.push(`open ${this.user}`);
    if (world.open.length > 0) world.faults.push("two sockets at once");
    world.connections.push(this);
    const fate = world.isCalm ? 1 : world.chance.next();
    if (fate < 0.15) setTimeout(() => this.fail(1006), 0);
    else if (fate < 0.2) this.isSilent = true;
    else setTimeout(() => this.#accept(), world.chance.below(50));
  }

  #accept(): void {
    if (this.closed) return;
    const rooms = [`user:${this.user}`, "presence:a"];
    for (const room of rooms) (this.url.includes("resume=1") ? this.held : this.live).add(room);
    if (this.held.size) setTimeout(() => this.#release(), 5000);
    this.isReady = true;
    this.say("connection:ready", {
      connection_id: `c${this.world.connections.length}`,
      namespace: "hub",
      user_id: this.user,
      role: "attendant",
      heartbeat_interval: 30,
      limits: this.world.chance.one([undefined, { frame_bytes: 300, rate: 20, burst: 5, rooms: 200 }]),
      rooms: Object.fromEntries(rooms.map((room) => [room, String(this.world.end(room))])),
    });
  }

  #release(): void {
    if (this.closed) return;
    for (const room of this.held) this.live.add(room);
    this.held.clear();
  }

  send(text: string): void {
    if (this.closed) return;
    if (!this.isReady) this.world.faults.push("sent before ready");
    const frame = JSON.parse(text) as { event: string; data: Data; id?: number };
    this.world.trace.push(`> ${text}`);
    if (frame.data.life !== undefined && frame.data.life !== this.world.life) this.world.faults.push(`of the last user: ${text}`);
    if (typeof frame.data.n === "number") {
      if (frame.data.n <= this.world.sent) this.world.faults.push(`${frame.data.n} was sent after ${this.world.sent}`);
      this.world.sent = frame.data.n;
    }
    if (this.isSilent) return;
    const { chance, isCalm } = this.world;
    if (!isCalm && chance.of(0.2)) return this.#refuse(frame);
    if (!isCalm && chance.of(0.05)) return; // no answer
    const room = (frame.data.room as string) ?? `thread:${frame.data.thread_id as string}`;
    if (frame.event.startsWith("join") && this.world.forbidden.has(room)) {
      return this.say("error", { code: "forbidden", message: "no" }, { id: frame.id });
    }
    const answer = this.#take(frame.event, frame.data);
    if (frame.id !== undefined) this.say("ack", answer.data, { id: frame.id });
    answer.then?.();
  }

  #refuse({ id }: { id?: number }): void {
    const { chance } = this.world;
    const code = chance.one(["unavailable", "rate_limited", "rate_limited", "internal"]);
    this.say("error", { code, message: "no", retry_after: chance.one(AFTER) }, { id });
  }

  #take(event: string, data: Data): { data: Data; then?: () => void } {
    if (event === "resume") return this.#resume(data.rooms as Record<string, string>);
    const room = (data.room as string) ?? `thread:${data.thread_id as string}`;
    if (event.startsWith("leave")) this.live.delete(room);
    if (!event.startsWith("join")) return { data: {} };
    this.live.add(room);
    return { data: { room, offset: String(this.world.end(room)) } };
  }

  #resume(rooms: Record<string, string>): { data: Data; then: () => void } {
    const { world } = this;
    const found: Data = {};
    const replay: [string, number][] = [];
    for (const [room, offset] of Object.entries(rooms)) {
      if (/^user:/.test(room) && room !== `user:${this.user}`) world.faults.push(`${this.user} resumes ${room}`);
      if (world.forbidden.has(room) || (/^user:/.test(room) && room !== `user:${this.user}`)) found[room] = { error: "forbidden" };
      else if (!world.isCalm && world.chance.of(0.15)) found[room] = { error: "unavailable" };
      else {
        const recovered = Number(offset) >= (world.trimmed.get(room) ?? 0);
        found[room] = { recovered, offset: recovered ? offset : String(world.end(room)), missed: 0 };
        if (recovered) for (let at = Number(offset) + 1; at <= world.end(room); at += 1) replay.push([room, at]);
        this.live.add(room);
        this.held.delete(room);
      }
    }
    return {
      data: { rooms: found },
      then: () => {
        for (const [room, at] of replay) {
          this.say("thread:message", { thread_id: "1", message_id: at }, { room, offset: String(at) });
        }
        this.#release();
      },
    };
  }

  say(event: string, data: object, more: object = {}): void {
    if (this.isSilent) return;
    this.#coming.push(JSON.stringify({ event, data, ...more }));
    this.#timer ??= setTimeout(() => this.#deliver(), this.world.chance.below(40));
  }

  /** Delivers some frames in one tick, as `ws` does, and the others later. */
  #deliver(): void {
    this.#timer = undefined;
    for (let more = 1 + this.world.chance.below(3); more > 0; more -= 1) {
      const text = this.#coming.shift();
      if (text === undefined || this.closed) return;
      this.world.trace.push(`< ${text}`);
      this.isKnown ||= text.includes("connection:ready");
      this.onmessage?.({ data: text });
    }
    if (this.#coming.length) this.#timer = setTimeout(() => this.#deliver(), this.world.chance.below(10));
  }

  fail(code: number): void {
    if (this.closed) return;
    this.closed = true;
    this.world.trace.push(`closed ${code}`);
    this.onclose?.({ code });
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.#timer);
    if (this.onclose) setTimeout(() => this.onclose?.({ code: 1000 }), 0);
  }
}

/** Something happens that the page does not do. */
export function happen(world: World): void {
  const { chance } = world;
  const room = chance.one([...ROOMS, ...world.automatic]);
  const connection = world.open.at(-1);
  const [name, action] = chance.one<readonly [string, () => void]>([
    ["publish", () => world.publish(room)],
    ["publish", () => world.publish(room)],
    ["publish", () => (world.publish(room), world.publish(room))],
    ["lose", () => chance.of(0.3) && world.publish(room, true)],
    ["trim", () => chance.of(0.3) && world.trimmed.set(room, world.end(room))],
    ["expel", () => chance.of(0.3) && world.expel(room)],
    ["close", () => chance.of(0.5) && connection?.fail(chance.one(CODES))],
    ["silence", () => chance.of(0.2) && connection && (connection.isSilent = true)],
    ["expiring", () => connection?.isReady && connection.say("auth:expiring", { expires_at: "" })],
    ["forbid", () => chance.of(0.1) && world.forbidden.add(room)],
    ["change", () => chance.of(0.2) && (world.user = chance.one(["7", "8"]))],
    ["permit", () => world.forbidden.clear()],
  ]);
  world.trace.push(`${name} ${room}`);
  action();
}
