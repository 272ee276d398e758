import { Backoff } from "./backoff.js";
import { Calls, SocketError } from "./calls.js";
import { consequence } from "./closing.js";
import { Emitter, type Handler } from "./emitter.js";
import type { Acks, ClientEvents, ServerEvents } from "./events.js";
import { Gaps, type Gap } from "./gaps.js";
import type { FetchLike, WebSocketLike } from "./options.js";
import { Presence, type Member } from "./presence.js";
import { roomOf, Rooms, threadOf } from "./rooms.js";
import { type GetToken, Tokens } from "./token.js";
import { watch } from "./wakeups.js";

/**
 * `offline`: the connection is lost, and another attempt follows. `denied`: the server refused the client, and another
 * attempt would not change that. `stopped`: `disconnect()` was called, `connect()` was not, the server closed normally, or
 * `reconnectionAttempts` are used up.
 */
export type Status = "connecting" | "connected" | "offline" | "denied" | "stopped";

/** The options of a `Socket`; all times are in milliseconds. */
export interface SocketOptions {
  /** The namespace's URL, for example `wss://example.com/hub/`. */
  url: string;
  /** Returns the access token; called again shortly before the last one expires. */
  getToken: GetToken;
  /** Whether to connect at once (default: true); otherwise call `connect()`. */
  autoConnect?: boolean;
  /** The longest first wait before a reconnect (default: 500). */
  reconnectionDelay?: number;
  /** The longest wait of all (default: 20,000). */
  reconnectionDelayMax?: number;
  /** Attempts in a row before the socket gives up (default: Infinity). */
  reconnectionAttempts?: number;
  /** The time until a handshake, or a request for a token, counts as failed (default: 10,000). */
  connectTimeout?: number;
  /** The longest random delay before a gap is reported; 0: none (default: 2,000). */
  gapDelayMax?: number;
  /** The time until a call without an answer fails (default: 10,000). */
  ackTimeout?: number;
  /** Events that may wait for a connection (default: 100). Typing and cursor events never wait. */
  queueSize?: number;
  /** Replaces the global `WebSocket`, for tests and platforms without one. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
  /** Replaces the global `fetch`. */
  fetch?: FetchLike;
  /** Replaces `Math.random`, for tests. */
  random?: () => number;
}

/** The socket's own events, beside those of the server. */
export interface SocketEvents {
  /** The status has changed. */
  status: Status;
  /** Publications in a room may have been missed: refetch its data. */
  gap: Gap;
  /** The client has entered a room, and receives what is published there from now on. */
  joined: { room: string };
  /** The server refused a room, or removed the client from it. */
  left: { room: string; reason: string };
  /** An established connection was closed; `status` shows whether another attempt follows. */
  closed: { code: number; reason: string };
  /** The members of a group have changed: see `presence()`. */
  presence: { group: string };
  /** The server refused an event of `emit()` or sent an invalid frame, or there is no token. */
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
/** Milliseconds after which a connection counts as stable, and the backoff starts over. */
const STABLE = 10_000;
/** Milliseconds within which a connection that may be dead must answer. */
const PROBE = 5_000;
/** The shortest wait after the rate limit was exceeded, in milliseconds. */
const PAUSE = 5_000;
/** The longest `Retry-After` that is accepted, in milliseconds. */
const LONGEST = 600_000;

/**
 * A connection to one namespace that reconnects and recovers its rooms until `disconnect()` is called.
 *
 * @example
 * const socket = new Socket({ url: "wss://example.com/hub/", getToken: () => token });
 * const leave = socket.join("42");
 * socket.on("thread:message", ({ message_id }) => console.log(message_id));
 * socket.when("gap", ({ room }) => refetch(room));
 * socket.emit("presence:away", {});
 */
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
  #websocket: WebSocketLike | undefined;
  #connectionId: string | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #heart: ReturnType<typeof setTimeout> | undefined;
  readonly #timers = new Set<ReturnType<typeof setTimeout>>();
  /** Rooms whose publications are ignored until this `resume` is answered. */
  #resume: { id: number; rooms: Set<string> } | undefined;
  #unwatch: (() => void) | undefined;
  #verdict: AbortController | undefined;
  #attempt = 0;
  /** Whether a frame has arrived since the last heartbeat. */
  #isAlive = false;
  /** The earliest time of the next attempt, in milliseconds since the epoch. */
  #earliest = 0;
  #nextAttempt: number | undefined;

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

  /** The current status; `when("status", …)` reports its changes. */
  get status(): Status {
    return this.#status;
  }

  /** Whether the status is `connected`. */
  get connected(): boolean {
    return this.#status === "connected";
  }

  /** When the next attempt to connect begins, in milliseconds since the epoch; only while `offline`, once it is planned. */
  get nextAttempt(): number | undefined {
    return this.#status === "offline" ? this.#nextAttempt : undefined;
  }

  /** The server's id of this connection: a backbone names it in `except`, so that a client does not get its own event. */
  get connectionId(): string | undefined {
    return this.#connectionId;
  }

  /**
   * Calls `handler` once for every event of that name that the server sends.
   *
   * @param name An event of the server.
   * @param handler Gets the event's data, and the room and offset if it was published in a room.
   * @returns A function that removes the handler.
   */
  on<Name extends keyof ServerEvents>(name: Name, handler: Handler<ServerEvents[Name]>): () => void {
    return this.#events.on(name, handler);
  }

  /**
   * Calls `handler` for every event of that name of the socket itself.
   *
   * @param name `status`, `gap`, `joined`, `left`, `closed`, `presence` or `error`.
   * @returns A function that removes the handler.
   */
  when<Name extends keyof SocketEvents>(name: Name, handler: Handler<SocketEvents[Name]>): () => void {
    return this.#own.on(name, handler);
  }

  // --- Life cycle ------------------------------------------------------------------------------

  /** Connects, and stays connected until `disconnect()`. Also retries after `denied` and `stopped`. */
  connect(): void {
    if (this.#status !== "stopped" && this.#status !== "denied") return;
    this.#unwatch ??= watch({
      wake: () => this.#wake(),
      online: () => {
        this.#backoff.reset(); // it was not the server's fault
        this.#wake();
      },
      offline: () => this.#lose(), // some browsers never report that it is over: retry anyway
      freeze: () => this.#drop("offline"),
    });
    this.#backoff.reset();
    void this.#open();
  }

  /** Closes the connection for good, until `connect()` is called. Drops all waiting events. */
  disconnect(): void {
    this.#drop("stopped");
    this.#end("stopped");
    for (const room of this.#gaps.drop()) this.#rooms.lose(room); // reported after the next `connect()`
    this.#queue.length = 0;
  }

  async #open(fresh = false): Promise<void> {
    const attempt = ++this.#attempt;
    clearTimeout(this.#retry);
    this.#nextAttempt = undefined;
    this.#become("connecting");
    let token: string;
    let websocket: WebSocketLike;
    try {
      token = await (fresh ? this.#tokens.fresh() : this.#tokens.get());
      if (attempt !== this.#attempt) return; // disconnected in the meantime
      websocket = new this.#options.WebSocket(this.#address(), ["realtime.v1", `bearer.${token}`]);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#own.emit("error", new SocketError("token", `expected an access token: ${String(error)}`));
      if (error instanceof SocketError && error.code === "forbidden") this.#end("denied");
      else this.#later();
      return;
    }
    this.#websocket = websocket;
    let ready = false;
    // Not `close()`: for a dead connection the browser calls `onclose` only after a minute.
    const expiry = this.#after(this.#options.connectTimeout, () => this.#lose());
    websocket.onmessage = ({ data }: { data: unknown }) => {
      if (websocket !== this.#websocket) return;
      this.#isAlive = true;
      const frame = this.#parse(data);
      if (frame === undefined) return;
      if (frame.event === "connection:ready") {
        ready = true;
        clearTimeout(expiry);
        this.#start(frame);
      }
      this.#take(frame);
    };
    websocket.onclose = ({ code, reason }: { code: number; reason: string }) => {
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

  /** Handles the first frame: continues where the last connection ended. */
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
   * Recovers the missed publications of these rooms. Until the answer arrives their publications are ignored, because they
   * are replayed. Without an answer, or after a temporary error, it asks again: the connection is in none of the rooms yet.
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

  /** Handles the answer synchronously, not in a promise: the missed publications may follow in the same task. */
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
   * Sends heartbeats, the first one at a random time, so that clients do not send theirs together. If no frame has arrived
   * since the last one, the connection is dead, which a browser does not notice for minutes.
   */
  #beat(interval: number): void {
    const again = (wait: number): void => {
      this.#heart = setTimeout(() => {
        if (!this.#isAlive) {
          this.#lose();
          return;
        }
        this.#isAlive = false;
        this.call("heartbeat", {}).catch(() => undefined); // any answer proves that the connection is alive
        again(interval);
      }, wait);
    };
    again(interval * (0.5 + this.#options.random() / 2));
  }

  // --- Loss ------------------------------------------------------------------------------------

  #closed(code: number): void {
    const next = consequence(code);
    if (next === "stop") {
      this.#end(code === 1000 ? "stopped" : "denied");
      return;
    }
    if (next === "fresh token") this.#tokens.forget();
    this.#later(next === "pause" ? PAUSE : 0);
  }

  /** Asks the server why a handshake failed, which a browser cannot see. */
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
        // The token may just have expired.
        this.#tokens.forget();
        void this.#open(true);
        return;
      }
      if ([401, 403, 404].includes(status)) {
        this.#end("denied");
        return;
      }
      const seconds = Number(headers.get("Retry-After"));
      if (seconds > 0) wait = Math.min(seconds * 1000, LONGEST); // NaN for a date
    } catch {
      if (attempt !== this.#attempt) return; // disconnected in the meantime; otherwise there is no network
    }
    this.#later(wait);
  }

  /** Gives the connection up, and schedules another attempt. */
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
    this.#nextAttempt = Date.now() + wait;
    this.#retry = setTimeout(() => void this.#open(), wait);
  }

  /** Stops all attempts to reconnect. */
  #end(status: "denied" | "stopped"): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#become(status);
  }

  /** Calls `action` after `wait` milliseconds, unless the connection has ended by then. */
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

  /** The network or the page is back: connects, or checks that the connection is alive. */
  #wake(): void {
    if (this.#status === "offline") {
      // With jitter, because the network of a whole office may be back, and not before `Retry-After`.
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

  /**
   * Sends an event without waiting for an answer. Without a connection it waits for one, except typing and cursor events
   * and heartbeats, which are dropped. Errors are reported by `when("error", …)`.
   *
   * @param event An event that clients may send.
   * @param data Its payload.
   */
  emit<Name extends keyof ClientEvents>(event: Name, data: ClientEvents[Name]): void {
    if (!this.#send(event, data) && !EPHEMERAL.has(event)) {
      if (this.#queue.length >= this.#options.queueSize) {
        this.#own.emit("error", new SocketError("queue_full", `${event} was not sent: ${this.#queue.length} events wait already`));
      } else {
        this.#queue.push(JSON.stringify({ event, data }));
      }
    }
  }

  /**
   * Sends an event and waits for its acknowledgement.
   *
   * @param event An event that clients may send.
   * @param data Its payload.
   * @param options.timeout Milliseconds to wait for the answer (default: `ackTimeout`).
   * @returns The data of the acknowledgement. Rejects with a `SocketError`: an error code of the protocol, `timeout`, or
   * `closed` if there is no connection.
   */
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
      this.#own.emit("error", new SocketError("invalid_json", "the server sent a frame that is not JSON"));
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
      this.#complain(error); // the connection is closed with 4401, and the next one asks again
    }
  }

  // --- Rooms -----------------------------------------------------------------------------------

  /**
   * Enters a room, and enters it again after every reconnect. `when("joined", …)` or `when("left", …)` reports the result.
   *
   * @param name A thread's id (`"42"`) or the name of any room that clients may join (`"thread:42"`, `"board:7"`).
   * @returns A function that leaves the room, once it was called for every call of `join()`.
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

  /** Whether the client is in a room, or was in it and is reconnecting. */
  isIn(room: string): boolean {
    return this.#rooms.wasIn(room);
  }

  /**
   * The present users of a group, sorted by name: the same list until `when("presence", …)` reports a change. Without a
   * connection it is the last known list; after `denied` and `stopped` it is empty.
   */
  presence(group: string): readonly Member[] {
    return this.#presence.members(group);
  }

  async #enter(room: string): Promise<void> {
    if (!this.connected || !this.#rooms.wants(room)) return;
    const thread = threadOf(room);
    const missed = this.#rooms.wasIn(room); // without an offset to recover from
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

  /** Retries after `unavailable`, `timeout` and `rate_limited`, with jitter. */
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
