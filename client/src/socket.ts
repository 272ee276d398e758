import { Backoff } from "./backoff.js";
import { Calls, SocketError } from "./calls.js";
import { consequence } from "./closing.js";
import { Emitter, type Handler } from "./emitter.js";
import type { Acks, ClientEvents, ServerEvents } from "./events.js";
import { Gaps, type Gap } from "./gaps.js";
import { Presence, type Member } from "./presence.js";
import { roomOf, Rooms, threadOf } from "./rooms.js";
import { type GetToken, Tokens } from "./token.js";
import { watch } from "./wakeups.js";

/**
 * `offline`: there is no connection, another attempt is coming. `denied`: the server said no, and trying again would
 * not change that. `stopped`: nobody wants a connection (any more), or `reconnectionAttempts` are used up.
 */
export type Status = "connecting" | "connected" | "offline" | "denied" | "stopped";

export interface SocketOptions {
  /** `wss://host/hub/` or `wss://host/portal/`. */
  url: string;
  /** The access token; asked for again shortly before the last one ends. */
  getToken: GetToken;
  /** Connect at once (default: true); else `connect()`. */
  autoConnect?: boolean;
  /** Milliseconds that the first wait before a reconnect is at most (default: 500). */
  reconnectionDelay?: number;
  /** Milliseconds that any wait is at most (default: 20,000). */
  reconnectionDelayMax?: number;
  /** Attempts in a row before it gives up (default: Infinity). */
  reconnectionAttempts?: number;
  /** Milliseconds until a handshake, or asking for a token, counts as failed (default: 10,000). */
  connectTimeout?: number;
  /** Milliseconds after which a gap is told at most, at random; 0 is at once (default: 2,000). */
  gapDelayMax?: number;
  /** Milliseconds until a call without an answer fails (default: 10,000). */
  ackTimeout?: number;
  /** Frames that wait while there is no connection (default: 100). Typing and cursors never wait. */
  queueSize?: number;
  /** For tests, and where there is no global one. */
  WebSocket?: typeof WebSocket;
  fetch?: typeof fetch;
  random?: () => number;
}

/** What happens to a connection, beside the server's events. */
export interface SocketEvents {
  status: Status;
  gap: Gap;
  /** The client is in a room that it wanted: what is published there comes from now on. */
  joined: { room: string };
  /** A room that the client wanted, or was in, is not allowed (any more). */
  left: { room: string; reason: string };
  /** A connection that had been one was closed, and why; `status` says what follows. */
  closed: { code: number; reason: string };
  /** Who is in a group is not who it was: see `presence()`. */
  presence: { group: string };
  /** The server refused a frame that nobody waits for, or sent something odd. */
  error: SocketError;
}

type Frame = {
  event: string;
  data: Record<string, unknown>;
  id?: unknown;
  room?: string;
  offset?: string;
};

const EPHEMERAL = new Set(["typing:start", "typing:stop", "cursor:move", "heartbeat"]);
/** Milliseconds after which a connection counts as stable, and the next loss starts with a short wait again. */
const STABLE = 10_000;
/** Milliseconds in which a connection that may be dead has to answer. */
const PROBE = 5_000;
/** Milliseconds to stay away at least after having been too fast. */
const PAUSE = 5_000;
/** Milliseconds that a server can ask for at most. */
const LONGEST = 600_000;

/** One connection to one namespace, for as long as it is wanted. */
export class Socket {
  readonly #options: Required<SocketOptions>;
  readonly #tokens: Tokens;
  readonly #backoff: Backoff;
  readonly #calls = new Calls();
  readonly #rooms = new Rooms();
  readonly #events = new Emitter<ServerEvents>();
  readonly #own = new Emitter<SocketEvents>();
  readonly #presence = new Presence((group) => this.#own.emit("presence", { group }));
  readonly #gaps: Gaps;
  readonly #queue: string[] = [];
  #status: Status = "stopped";
  #websocket: WebSocket | undefined;
  #connectionId: string | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #heart: ReturnType<typeof setTimeout> | undefined;
  readonly #timers = new Set<ReturnType<typeof setTimeout>>();
  /** Rooms that go on with the answer to this `resume`, and not before. */
  #resume: { id: number; rooms: Set<string> } | undefined;
  #unwatch: (() => void) | undefined;
  #verdict: AbortController | undefined;
  #attempt = 0;
  /** Whether anything came since the last heartbeat. */
  #heard = false;
  /** When the server wants to be asked again. */
  #earliest = 0;

  constructor(options: SocketOptions) {
    this.#options = {
      autoConnect: true,
      reconnectionDelay: 500,
      reconnectionDelayMax: 20_000,
      reconnectionAttempts: Infinity,
      connectTimeout: 10_000,
      gapDelayMax: 2_000,
      ackTimeout: 10_000,
      queueSize: 100,
      WebSocket: globalThis.WebSocket,
      fetch: (...request) => globalThis.fetch(...request),
      random: Math.random,
      ...options,
    };
    this.#tokens = new Tokens(this.#options.getToken, this.#options.connectTimeout);
    this.#backoff = new Backoff(this.#options, this.#options.random);
    this.#gaps = new Gaps(
      (gap) => this.#own.emit("gap", gap),
      () => this.#options.random() * this.#options.gapDelayMax,
    );
    if (this.#options.autoConnect) this.connect();
  }

  get status(): Status {
    return this.#status;
  }

  get connected(): boolean {
    return this.#status === "connected";
  }

  /** The server's name for this connection, to be left out of what one publishes oneself (`except`). */
  get connectionId(): string | undefined {
    return this.#connectionId;
  }

  /** Calls `handler` for every such event of the server, once each, until the function that is returned is called. */
  on<Name extends keyof ServerEvents>(name: Name, handler: Handler<ServerEvents[Name]>): () => void {
    return this.#events.on(name, handler);
  }

  /** The same for what happens to the connection. */
  when<Name extends keyof SocketEvents>(name: Name, handler: Handler<SocketEvents[Name]>): () => void {
    return this.#own.on(name, handler);
  }

  // --- Life ------------------------------------------------------------------------------------

  /** Connects, and stays connected until `disconnect()`. */
  connect(): void {
    if (this.#status !== "stopped" && this.#status !== "denied") return;
    this.#unwatch ??= watch({
      wake: () => this.#wake(),
      online: () => {
        this.#backoff.reset(); // it was not the server's fault
        this.#wake();
      },
      offline: () => this.#lose(), // some browsers say so, and never that it is over: try all the same
      freeze: () => this.#drop("offline"),
    });
    this.#backoff.reset();
    void this.#open();
  }

  /** Ends the connection, and does not come back by itself. */
  disconnect(): void {
    this.#drop("stopped");
    this.#end("stopped");
    for (const room of this.#gaps.drop()) this.#rooms.lose(room); // then it is told after the next `connect()`
    this.#queue.length = 0;
  }

  async #open(fresh = false): Promise<void> {
    const attempt = ++this.#attempt;
    clearTimeout(this.#retry);
    this.#become("connecting");
    let token: string;
    let websocket: WebSocket;
    try {
      token = await (fresh ? this.#tokens.fresh() : this.#tokens.get());
      if (attempt !== this.#attempt) return; // disconnected meanwhile
      websocket = new this.#options.WebSocket(this.#address(), ["realtime.v1", `bearer.${token}`]);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#own.emit("error", new SocketError("token", `there is no token, or it is none: ${String(error)}`));
      if (error instanceof SocketError && error.code === "forbidden") this.#end("denied");
      else this.#later();
      return;
    }
    this.#websocket = websocket;
    let ready = false;
    // Not `close()`: what became of a connection that is dead the browser only tells after a minute.
    const patience = this.#after(this.#options.connectTimeout, () => this.#lose());
    websocket.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (websocket !== this.#websocket) return;
      this.#heard = true;
      const frame = this.#parse(data);
      if (frame === undefined) return;
      if (frame.event === "connection:ready") {
        ready = true;
        clearTimeout(patience);
        this.#start(frame);
      }
      this.#take(frame);
    };
    websocket.onclose = ({ code, reason }: CloseEvent) => {
      if (websocket !== this.#websocket) return;
      this.#forget();
      if (!ready) {
        void this.#refused(token, fresh);
        return;
      }
      this.#own.emit("closed", { code, reason });
      this.#closed(code);
    };
  }

  #address(): string {
    const { url } = this.#options;
    if (Object.keys(this.#rooms.offsets).length === 0) return url;
    return `${url}${url.includes("?") ? "&" : "?"}resume=1`;
  }

  /** The first frame has come: go on where the last connection ended. */
  #start(frame: Frame): void {
    const ready = frame.data as unknown as ServerEvents["connection:ready"];
    this.#connectionId = ready.connection_id;
    this.#presence.begin();
    const known = this.#rooms.offsets;
    const unknown = this.#rooms.wanted.filter((room) => !(room in known));
    for (const [room, offset] of Object.entries(ready.rooms)) {
      this.#rooms.addAutomatic(room);
      if (room in known) continue;
      if (this.#rooms.wasIn(room)) this.#gaps.add(room, "joined anew");
      this.#rooms.hasSeen(room, offset);
    }
    this.#after(STABLE, () => this.#backoff.reset());
    this.#beat(ready.heartbeat_interval * 1000);
    this.#become("connected");
    void this.#recover(new Set(Object.keys(known)));
    for (const room of unknown) void this.#enter(room);
    for (const text of this.#queue.splice(0)) this.#websocket?.send(text);
  }

  /**
   * Asks for what was missed in these rooms. Until that is answered nothing of them is taken: it would come again. An
   * answer that does not come, or says that it cannot be had now, is asked for again: without it one is in no room.
   */
  async #recover(rooms: Set<string>): Promise<void> {
    const offsets = Object.fromEntries(Object.entries(this.#rooms.offsets).filter(([room]) => rooms.has(room)));
    this.#resume = undefined;
    if (Object.keys(offsets).length === 0) return;
    const { id, answer } = this.#ask("resume", { rooms: offsets }, this.#options.ackTimeout);
    this.#resume = { id, rooms };
    try {
      await answer;
    } catch (error) {
      this.#complain(error);
      this.#again(error, () => void this.#recover(rooms));
    }
  }

  /** At once, and not when a promise comes round to it: what was missed may be right behind. */
  #recovered({ rooms }: Acks["resume"]): void {
    this.#resume = undefined;
    for (const [room, found] of Object.entries(rooms)) {
      if ("error" in found) {
        this.#expelled(room, found.error);
      } else if (!found.recovered) {
        this.#rooms.hasSeen(room, found.offset);
        this.#gaps.add(room, "not recovered");
      }
    }
  }

  /**
   * Heartbeats; the first one somewhere in the interval, so that not all clients send theirs together. When nothing at all
   * came since the last one the connection is dead, which a browser does not notice for minutes.
   */
  #beat(interval: number): void {
    const again = (wait: number): void => {
      this.#heart = setTimeout(() => {
        if (!this.#heard) {
          this.#lose();
          return;
        }
        this.#heard = false;
        this.call("heartbeat", {}).catch(() => undefined); // whatever the answer is, it is one
        again(interval);
      }, wait);
    };
    again(interval * (0.5 + this.#options.random() / 2));
  }

  // --- Losing it -------------------------------------------------------------------------------

  #closed(code: number): void {
    const next = consequence(code);
    if (next === "stop") {
      this.#end(code === 1000 ? "stopped" : "denied");
      return;
    }
    if (next === "fresh token") this.#tokens.forget();
    this.#later(next === "pause" ? PAUSE : 0);
  }

  /** A browser cannot see why a handshake failed: ask. */
  async #refused(token: string, fresh: boolean): Promise<void> {
    const attempt = this.#attempt;
    this.#become("offline");
    const verdict = (this.#verdict = new AbortController());
    this.#after(this.#options.connectTimeout, () => verdict.abort());
    let wait = 0;
    try {
      const { status, headers } = await this.#options.fetch(this.#options.url.replace(/^ws/, "http"), {
        headers: { Authorization: `Bearer ${token}` },
        cache: "no-store",
        signal: verdict.signal,
      });
      if (attempt !== this.#attempt) return;
      if (status === 401 && !fresh) {
        // Perhaps it is only too old.
        this.#tokens.forget();
        void this.#open(true);
        return;
      }
      if ([401, 403, 404].includes(status)) {
        this.#end("denied");
        return;
      }
      const seconds = Number(headers.get("Retry-After"));
      if (seconds > 0) wait = Math.min(seconds * 1000, LONGEST); // not of a date, which is no number
    } catch {
      if (attempt !== this.#attempt) return; // no network either
    }
    this.#later(wait);
  }

  /** The connection is no good any more, whether or not anybody says so: get another one. */
  #lose(): void {
    this.#drop("offline");
    this.#later();
  }

  #later(least = 0): void {
    if (this.#backoff.attempts >= this.#options.reconnectionAttempts) {
      this.#end("stopped");
      return;
    }
    this.#become("offline");
    this.#earliest = Date.now() + least;
    this.#retryIn(least + this.#backoff.next());
  }

  #retryIn(wait: number): void {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => void this.#open(), wait);
  }

  /** Nothing comes back by itself any more. */
  #end(status: "denied" | "stopped"): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#become(status);
  }

  /** For as long as this connection lasts. */
  #after(wait: number, action: () => void): ReturnType<typeof setTimeout> {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      action();
    }, wait);
    this.#timers.add(timer);
    return timer;
  }

  #drop(status: "offline" | "stopped"): void {
    this.#attempt += 1;
    clearTimeout(this.#retry);
    const websocket = this.#websocket;
    this.#forget();
    websocket?.close(1000);
    this.#become(status);
  }

  #forget(): void {
    this.#websocket = undefined;
    this.#connectionId = undefined;
    this.#verdict?.abort();
    clearTimeout(this.#heart);
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#resume = undefined;
    this.#calls.rejectAll(new SocketError("closed", "the connection was lost"));
  }

  /** Network or page are back: connect now, or see whether the connection is still one. */
  #wake(): void {
    if (this.#status === "offline") {
      // Not all at once when the network of a whole office is back, and not before the server wants it.
      const jitter = this.#options.random() * this.#options.reconnectionDelay;
      this.#retryIn(Math.max(0, this.#earliest - Date.now()) + jitter);
    } else if (this.#status === "connected") {
      const websocket = this.#websocket;
      this.call("heartbeat", {}, { timeout: PROBE }).catch((error: SocketError) => {
        if (error.code === "timeout" && websocket === this.#websocket) {
          this.#drop("offline");
          this.#wake();
        }
      });
    }
  }

  // --- Frames ----------------------------------------------------------------------------------

  /** Sends an event. While there is no connection it waits for one, unless it is worth nothing later (typing). */
  emit<Name extends keyof ClientEvents>(event: Name, data: ClientEvents[Name]): void {
    if (!this.#send(event, data) && !EPHEMERAL.has(event)) {
      if (this.#queue.length >= this.#options.queueSize) {
        this.#own.emit("error", new SocketError("queue_full", `${event} was not sent: too much waits already`));
      } else {
        this.#queue.push(JSON.stringify({ event, data }));
      }
    }
  }

  /** Sends an event and waits for its acknowledgement. Rejects with `SocketError`. */
  call<Name extends keyof ClientEvents>(
    event: Name,
    data: ClientEvents[Name],
    { timeout = this.#options.ackTimeout }: { timeout?: number } = {},
  ): Promise<Acks[Name]> {
    return this.#ask(event, data, timeout).answer;
  }

  #ask<Name extends keyof ClientEvents>(
    event: Name,
    data: ClientEvents[Name],
    timeout: number,
  ): { id: number; answer: Promise<Acks[Name]> } {
    const call = this.#calls.open<Acks[Name]>(timeout);
    if (!this.#send(event, data, call.id)) {
      this.#calls.reject(call.id, new SocketError("closed", "there is no connection"));
    }
    return call;
  }

  #send(event: string, data: object, id?: number): boolean {
    if (!this.connected || this.#websocket === undefined) return false;
    this.#websocket.send(JSON.stringify(id === undefined ? { event, data } : { event, data, id }));
    return true;
  }

  #parse(data: unknown): Frame | undefined {
    try {
      return JSON.parse(String(data)) as Frame;
    } catch {
      this.#own.emit("error", new SocketError("invalid_json", "the server sent something that is no JSON"));
      return undefined;
    }
  }

  #take(frame: Frame): void {
    const { event, data, id, room, offset } = frame;
    if (event === "ack") {
      if (id !== undefined && id === this.#resume?.id) this.#recovered(data as Acks["resume"]);
      this.#calls.resolve(id, data);
      return;
    }
    if (event === "error") {
      const error = new SocketError(String(data.code), String(data.message), data.retry_after as number | undefined);
      if (id === undefined) this.#own.emit("error", error);
      else this.#calls.reject(id, error);
      return;
    }
    if (room !== undefined && offset !== undefined) {
      if (this.#resume?.rooms.has(room)) return;
      this.#rooms.hasSeen(room, offset);
    }
    this.#presence.take(event, data, room, offset);
    if (event === "room:gap") {
      this.#presence.begin(String(data.room));
      this.#rooms.lose(String(data.room));
      this.#gaps.add(String(data.room), String(data.reason));
    } else if (event === "room:left") {
      this.#expelled(String(data.room), String(data.reason));
    } else if (event === "auth:expiring") {
      void this.#refresh();
    }
    this.#events.emit(event as keyof ServerEvents, data as never, {
      ...(room === undefined ? {} : { room }),
      ...(offset === undefined ? {} : { offset }),
    });
  }

  async #refresh(): Promise<void> {
    try {
      await this.call("auth:refresh", { token: await this.#tokens.fresh() });
    } catch (error) {
      this.#complain(error); // the connection ends with 4401, and the next one asks again
    }
  }

  // --- Rooms -----------------------------------------------------------------------------------

  /**
   * Enters a room, as often as it is called; the function that is returned leaves it as often. `name` is a thread's id
   * (`"42"`) or the name of any room that clients may join (`"thread:42"`, `"board:7"`).
   */
  join(name: string): () => void {
    const room = roomOf(name);
    const thread = threadOf(room);
    const who = {};
    if (this.#rooms.enter(room, who)) void this.#enter(room);
    return () => {
      if (!this.#rooms.leave(room, who)) return;
      if (thread === undefined) this.#send("leave", { room });
      else this.#send("leave:thread", { thread_id: thread });
    };
  }

  /** Whether the client is in a room, or was and is on the way back into it. */
  isIn(room: string): boolean {
    return this.#rooms.wasIn(room);
  }

  /**
   * Who is present in a group, in the order of their names: the same list until somebody comes, goes or changes. While there
   * is no connection it is what was known last, and nobody once there will be none.
   */
  presence(group: string): readonly Member[] {
    return this.#presence.members(group);
  }

  async #enter(room: string): Promise<void> {
    if (!this.connected || !this.#rooms.wants(room)) return;
    const thread = threadOf(room);
    const missed = this.#rooms.wasIn(room); // and it is not known what
    try {
      const { offset } = await (thread === undefined
        ? this.call("join", { room })
        : this.call("join:thread", { thread_id: thread }));
      if (!this.#rooms.wants(room)) return;
      if (!this.#rooms.isKnown(room)) this.#rooms.hasSeen(room, offset);
      if (missed) this.#gaps.add(room, "joined anew");
      this.#own.emit("joined", { room });
    } catch (error) {
      if (error instanceof SocketError && ["forbidden", "limit_exceeded", "invalid_payload"].includes(error.code)) {
        this.#expelled(room, error.code);
      } else {
        this.#again(error, () => void this.#enter(room));
      }
    }
  }

  /** After `unavailable`, `timeout`, `rate_limited` it is still wanted; not by everybody at the same moment. */
  #again(error: unknown, action: () => void): void {
    if (!(error instanceof SocketError) || error.code === "closed") return;
    this.#after((error.retryAfter ?? 1) * 1000 * (1 + this.#options.random()), action);
  }

  #expelled(room: string, reason: string): void {
    this.#rooms.forget(room);
    this.#presence.forget(room);
    this.#own.emit("left", { room, reason });
  }

  // --- Status ----------------------------------------------------------------------------------

  #become(status: Status): void {
    if (status === this.#status) return;
    this.#status = status;
    if (status === "denied" || status === "stopped") this.#presence.forget();
    this.#own.emit("status", status);
  }

  #complain(error: unknown): void {
    if (error instanceof SocketError && error.code === "closed") return;
    this.#own.emit("error", error instanceof SocketError ? error : new SocketError("internal", String(error)));
  }
}
