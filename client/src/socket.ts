import { SocketError, closed, failure } from "./calls.js";
import { Connector } from "./connector.js";
import { Emitter, type Handler } from "./emitter.js";
import type { Acks, ClientEvents, ServerEvents } from "./events.js";
import { nameOf, type Id } from "./ids.js";
import { Membership } from "./membership.js";
import { validated, type SocketOptions } from "./options.js";
import { Outbox } from "./outbox.js";
import { Presence, type Member } from "./presence.js";
import type { SocketEvents, Status } from "./reports.js";
import { roomOf } from "./rooms.js";
import type { Refusal } from "./verdict.js";

export type { SocketEvents, Status } from "./reports.js";
export type { SocketOptions } from "./options.js";

type Frame = {
  event: string;
  data: Record<string, unknown>;
  id?: unknown;
  room?: string;
  offset?: string;
};

/** The server's events, by names that the socket's own do not have. */
type Served = { [Name in keyof ServerEvents as `server ${Name}`]: ServerEvents[Name] };

/** The longest `retry_after` that is accepted, in seconds. */
const LONGEST_WAIT = 600;

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
  readonly #own = new Emitter<SocketEvents & Served>();
  readonly #presence = new Presence(this.#own);
  readonly #outbox: Outbox;
  readonly #connector: Connector;
  readonly #membership: Membership;
  #connectionId: string | undefined;
  /** The user and the role of the last connection. */
  #user: string | undefined;

  /** Throws a `TypeError` or a `RangeError` that names an invalid option, also if the platform has no `WebSocket`. */
  constructor(options: SocketOptions) {
    const settings = validated(options);
    this.#outbox = new Outbox(settings, this.#own);
    const owner = {
      resumes: () => this.#membership.offsets.length > 0,
      received: (text: string) => this.#received(text),
      lost: () => this.#lost(),
      became: (status: Status) => this.#became(status),
    };
    this.#connector = new Connector(settings, owner, this.#own);
    this.#membership = new Membership(settings, this.#outbox, this.#connector.timers, this.#own);
    if (settings.autoConnect) this.connect();
  }

  /** The current status; `when("status", …)` reports its changes. */
  get status(): Status {
    return this.#connector.status;
  }

  /** Why the last attempt was refused, until there is a connection; `when("refused", …)` reports it. */
  get refusal(): Refusal | undefined {
    return this.#connector.refusal;
  }

  /** When the next attempt to connect begins, in milliseconds since the epoch; only while `offline`, once it is planned. */
  get nextAttempt(): number | undefined {
    return this.#connector.nextAttempt;
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
    return this.#own.on(`server ${name}`, handler as never);
  }

  /**
   * Calls `handler` for every event of that name of the socket itself.
   *
   * @param name `status`, `refused`, `reset`, `gap`, `joined`, `left`, `closed`, `presence` or `error`.
   * @returns A function that removes the handler.
   */
  when<Name extends keyof SocketEvents>(name: Name, handler: Handler<SocketEvents[Name]>): () => void {
    return this.#own.on(name, handler as never);
  }

  // --- Life cycle ------------------------------------------------------------------------------

  /** Connects, and stays connected until `disconnect()`. Also retries after `denied` and `stopped`. */
  connect(): void {
    this.#connector.connect();
  }

  /**
   * Closes the connection for good, until `connect()` is called, and discards everything of its user: the token, offsets,
   * presence, and waiting events and calls. The rooms of `join()` are entered again, with a gap, for the user who connects next.
   */
  disconnect(): void {
    this.#outbox.end(true); // also what was added while it was stopped
    this.#connector.end("stopped");
  }

  /**
   * Replaces the connection by a new one, soon, because the network has changed. Does nothing after `denied` and `stopped`.
   */
  reconnect(): void {
    this.#connector.reconnect();
  }

  /**
   * Connects soon, or checks that the connection is alive. A browser's events call it; other platforms should do so when the
   * application is active again, or the network is back.
   */
  wake(): void {
    this.#connector.wake();
  }

  /**
   * Waits for a connection.
   *
   * @returns A promise that resolves at once if there is one. It rejects with a `SocketError` when the socket is `denied` (the
   * error has the code and the message of the refusal) or `stopped` (`closed`).
   * @example
   * await socket.connected();
   */
  async connected(): Promise<void> {
    for (;;) {
      this.#expectConnection();
      if (this.status === "connected") return;
      await new Promise<unknown>((resolve) => {
        const off = this.when("status", (status) => (off(), resolve(status)));
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
    this.#outbox.put(event, data);
  }

  /**
   * Sends an event and waits for its acknowledgement. Without a connection it waits for one, as `emit()` does.
   *
   * @param event An event that clients may send.
   * @param data Its payload.
   * @param options.timeout Milliseconds to wait for a connection and the answer (default: `ackTimeout`).
   * @returns The data of the acknowledgement. Rejects with a `SocketError`: an error code of the protocol, `timeout`,
   * `too_large`, `queue_full`, or `closed` if the connection was lost, or there will be none.
   */
  async call<Name extends keyof ClientEvents>(
    event: Name,
    data: ClientEvents[Name],
    { timeout }: { timeout?: number | undefined } = {},
  ): Promise<Acks[Name]> {
    this.#expectConnection();
    return this.#outbox.call(event, data, timeout);
  }

  #received(text: string): void {
    try {
      this.#take(JSON.parse(text) as Frame);
    } catch {
      this.#outbox.complain(new SocketError("invalid_json", "invalid JSON")); // or not of this protocol
    }
  }

  #take({ event, data, id, room, offset }: Frame): void {
    data ??= {};
    if (event === "ack") return this.#outbox.settle(id, data);
    if (event === "error") return this.#outbox.settle(id, this.#errorOf(data));
    if (event === "connection:ready") {
      this.#start(data as unknown as ServerEvents["connection:ready"]);
      if (!this.#connectionId) return; // a handler has disconnected
    }
    if (room && offset && !this.#membership.accepts(room, offset)) return;
    this.#presence.take(event, data, room, offset);
    if (event === "room:gap") this.#membership.gap(data.room as string, data.reason as string);
    else if (event === "room:left") this.#membership.expelled(data.room as string, data.reason as string);
    else if (event === "auth:expiring") void this.#refresh();
    this.#own.emit(`server ${event as keyof ServerEvents}`, data as never, { room, offset });
  }

  #errorOf({ code, message, retry_after: retryAfter }: Frame["data"]): SocketError {
    const wait = Math.min(Number(retryAfter), LONGEST_WAIT);
    return new SocketError(String(code), this.#connector.tokens.scrub(message), wait > 0 ? wait : undefined);
  }

  async #refresh(): Promise<void> {
    const connection = this.#connectionId;
    try {
      const token = await this.#connector.tokens.fresh();
      if (connection === this.#connectionId) await this.#outbox.ask("auth:refresh", { token });
    } catch (error) {
      this.#outbox.complain(failure(error)); // the connection is closed with 4401, and the next one asks again
    }
  }

  // --- Rooms -----------------------------------------------------------------------------------

  /**
   * Enters a room, and enters it again after every reconnect. `when("joined", …)` or `when("left", …)` reports the result.
   *
   * @param id A thread's id (`"42"`, `42`) or the name of any room that clients may join (`"thread:42"`, `"board:7"`).
   * @returns A function that leaves the room, once it was called for every call of `join()`. Throws a `TypeError` for what
   * is no id, such as a fraction.
   */
  join(id: Id): () => void {
    return this.#membership.join(roomOf(id));
  }

  /** Whether the client is in a room (or a thread, by its id), or was in it and is reconnecting. */
  isIn(id: Id): boolean {
    return this.#membership.isIn(roomOf(id));
  }

  /**
   * The present users of a group, sorted by name: the same list until `when("presence", …)` reports a change. Without a
   * connection it is the last known list; after `denied` and `stopped` it is empty.
   */
  presence(group: Id): readonly Member[] {
    return this.#presence.members(nameOf(group));
  }

  // --- The connection --------------------------------------------------------------------------

  #start(ready: ServerEvents["connection:ready"]): void {
    const rooms = Object.entries(ready.rooms); // throws before anything has changed
    const user = `${ready.user_id} ${ready.role}`;
    const isAnother = user !== (this.#user ?? user);
    this.#connectionId = ready.connection_id;
    if (isAnother) this.#reset("user");
    if (!this.#connectionId) return; // a handler has disconnected
    this.#user = user;
    this.#membership.begin(rooms, isAnother);
    this.#outbox.begin((text) => this.#connector.send(text), ready.limits);
    if (this.#connectionId) this.#connector.ready(ready.heartbeat_interval * 1000); // or a handler has disconnected
  }

  #lost(): void {
    this.#connectionId = undefined;
    this.#membership.end();
    this.#outbox.end();
  }

  #became(status: Status): void {
    if (this.#connector.isOver) this.#reset(status as "denied" | "stopped");
    if (status === this.status) this.#own.emit("status", status); // unless a handler of `reset` has connected
  }

  /** Discards everything of the last user. */
  #reset(reason: SocketEvents["reset"]["reason"]): void {
    this.#user = undefined;
    if (reason !== "user") this.#connector.forgetToken(); // otherwise it is the new user's
    this.#membership.reset();
    this.#outbox.end(true);
    this.#presence.forget();
    this.#own.emit("reset", { reason });
  }

  #expectConnection(): void {
    if (!this.#connector.isOver) return;
    const { code, message } = this.refusal ?? closed();
    throw new SocketError(code, message);
  }
}
