import { Backoff } from "./backoff.js";
import { SocketError, failure } from "./calls.js";
import { consequence } from "./closing.js";
import type { Emitter } from "./emitter.js";
import type { Settings, WebSocketLike } from "./options.js";
import type { SocketEvents, Status } from "./reports.js";
import { Timers } from "./timers.js";
import { Tokens } from "./token.js";
import { verdict, type Refusal, type Verdict } from "./verdict.js";
import { watch } from "./wakeups.js";

/** What a connector works for. */
export interface Owner {
  /** Whether the next connection continues where the last one ended. */
  resumes(): boolean;
  /** Text has arrived. It calls `ready()` for the first frame. */
  received(text: string): void;
  /** The connection, or the attempt, is over. */
  lost(): void;
  /** The status has changed. */
  became(status: Status): void;
}

/** Milliseconds after which a connection counts as stable, and the backoff starts over. */
const STABLE = 10_000;
/** The shortest wait after the rate limit was exceeded, in milliseconds. */
const PAUSE = 5_000;
/** Milliseconds within which a connection that may be dead must answer. */
const PROBE = 5_000;
/** The shortest time between two calls of `wake()` that count, in milliseconds. */
const BETWEEN = 1_000;

/** No call has its id. */
const HEARTBEAT = '{"event":"heartbeat","data":{},"id":0}';

/** Keeps one connection open: the attempts, why they fail, and the waits between them. */
export class Connector {
  /** End with the connection or the attempt. */
  readonly timers = new Timers();
  status: Status = "stopped";
  /** Why the last attempt was refused, until there is a connection. */
  refusal: Refusal | undefined;
  /** When the next attempt begins, in milliseconds since the epoch; undefined if none is planned. */
  nextAttempt: number | undefined;
  /** Replaced when the last one is to be forgotten, also one that was asked for and has not arrived. */
  tokens: Tokens;
  readonly #backoff: Backoff;
  #websocket: WebSocketLike | undefined;
  #unwatch: (() => void) | undefined;
  /** Aborted with the connection or the attempt. */
  #life = new AbortController();
  /** When the last frame arrived, by `performance.now()`. */
  #heardAt = 0;
  /** The earliest time of the next attempt, by `performance.now()`: a clock that is set back would delay it. */
  #earliest = 0;
  /** Until then, by `performance.now()`, a further `wake()` would change nothing, or put the attempt off. */
  #nextWake = 0;
  readonly #settings: Settings;
  readonly #owner: Owner;
  readonly #reports: Emitter<SocketEvents>;

  constructor(settings: Settings, owner: Owner, reports: Emitter<SocketEvents>) {
    this.#settings = settings;
    this.#owner = owner;
    this.#reports = reports;
    this.tokens = new Tokens(settings.getToken);
    this.#backoff = new Backoff(settings, settings.random);
  }

  /** Whether there will be no further attempt. */
  get isOver(): boolean {
    return this.status === "stopped" || this.status === "denied";
  }

  connect(): void {
    if (!this.isOver) return;
    this.#unwatch = watch(this);
    this.#backoff.reset();
    void this.#open();
  }

  /** Ends the connection, and all attempts. */
  end(status: "denied" | "stopped"): void {
    this.#forget();
    this.#unwatch?.();
    this.#become(status);
  }

  /** Connects soon, or checks that the connection is alive. */
  wake(): void {
    const now = performance.now();
    if (now < this.#nextWake) return;
    this.#nextWake = now + BETWEEN;
    if (this.status === "connected") this.#probe(PROBE);
    // With jitter, because the network of a whole office may be back.
    if (this.status === "offline") this.#retryIn(this.#settings.random() * this.#settings.reconnectionDelay);
  }

  /** Replaces the connection, or the attempt, soon. */
  reconnect(): void {
    if (this.isOver) return;
    this.#backoff.reset();
    this.lose();
  }

  /** Gives the connection up, and schedules another attempt. */
  lose(): void {
    this.#forget();
    this.#later();
  }

  send(text: string): void {
    this.#websocket?.send(text);
  }

  forgetToken(): void {
    this.tokens = new Tokens(this.#settings.getToken);
  }

  /**
   * The connection is ready: sends heartbeats, the first one at a random time, so that clients do not send theirs together.
   */
  ready(interval: number): void {
    const beat = (): void => this.#probe(interval, beat);
    this.timers.clear();
    this.timers.after(STABLE, () => this.#backoff.reset());
    // A server that announces no interval wants no heartbeats.
    if (interval > 0) this.timers.after(interval * (0.5 + this.#settings.random() / 2), beat);
    this.refusal = undefined;
    this.#become("connected");
  }

  /**
   * Sends a heartbeat, past all that waits. Without any frame in this time the connection is dead, which a browser does not
   * notice for minutes.
   */
  #probe(within: number, alive?: () => void): void {
    const since = performance.now();
    this.send(HEARTBEAT);
    this.timers.after(within, () => {
      if (this.#heardAt < since) this.reconnect();
      else alive?.();
    });
  }

  // --- Attempts --------------------------------------------------------------------------------

  async #open(fresh = false): Promise<void> {
    const signal = this.#forget();
    this.#expect(() => this.forgetToken()); // it may never arrive
    this.#become("connecting");
    try {
      await undefined; // the page adds its handlers first
      const { url: given } = this.#settings;
      const url = typeof given === "string" ? given : await given();
      if (signal.aborted) return; // disconnected in the meantime
      const token = await this.tokens.get();
      if (signal.aborted) return;
      this.#listen(this.#connected(url, token), () => this.#ask(url, token, fresh));
    } catch (error) {
      if (!signal.aborted) this.#fail(error);
    }
  }

  /** Gives this part of an attempt up if it takes too long. */
  #expect(late?: () => void): void {
    this.timers.clear();
    this.timers.after(this.#settings.connectTimeout, () => {
      late?.();
      this.lose(); // not `close()`: for a dead connection the browser calls `onclose` only after a minute
    });
  }

  #connected(url: string, token: string): WebSocketLike {
    const address = this.#owner.resumes() ? `${url}${url.includes("?") ? "&" : "?"}resume=1` : url;
    try {
      return new this.#settings.WebSocket(address, ["realtime.v1", `bearer.${token}`]);
    } catch (error) {
      // Without the error's own text, which may quote the token.
      throw new SocketError("forbidden", `WebSocket does not accept the url: ${(error as Error).name}`);
    }
  }

  #listen(websocket: WebSocketLike, ask: () => Promise<void>): void {
    this.#websocket = websocket;
    this.#expect();
    websocket.onmessage = ({ data }) => {
      this.#heardAt = performance.now();
      this.#owner.received(String(data));
    };
    websocket.onclose = ({ code, reason = "" }) => {
      this.#forget();
      if (this.status === "connected") this.#closed(code, this.tokens.scrub(reason));
      else void ask();
    };
    websocket.onerror = () => undefined; // `ws` throws an error without a listener; a close follows
  }

  /** Handles an attempt that did not get as far as a WebSocket. */
  #fail(error: unknown): void {
    const why = failure(error);
    if (why.code === "forbidden") this.#refuse(why);
    else if (this.#goesOn("error", why)) this.#later();
  }

  // --- Loss ------------------------------------------------------------------------------------

  #closed(code: number, reason: string): void {
    if (!this.#goesOn("closed", { code, reason })) return;
    const next = consequence(code);
    if (next === "fresh token") this.forgetToken();
    if (next !== "stop") this.#later(next === "pause" ? PAUSE : 0);
    else if (code === 1000) this.end("stopped");
    else this.#refuse({ status: code, code: "closed", message: reason || `code ${code}` });
  }

  /** Asks the server why a handshake failed. */
  async #ask(url: string, token: string, fresh: boolean): Promise<void> {
    const { signal } = this.#life;
    this.#expect();
    this.#become("offline");
    const found = await verdict(this.#settings.fetch, url, token, signal).catch(() => undefined); // no network
    if (signal.aborted) return;
    if (!found) return this.#later();
    const { status, code } = found;
    if (status === 401 && !fresh) {
      this.forgetToken(); // it may just have expired
      void this.#open(true);
    }
    // A proxy, or another application, answers 404 as well, and may be the socket server again in a minute.
    else this.#refuse(found, [401, 403].includes(status) || code === "not_found");
  }

  #refuse({ status = 0, code, message, wait }: Partial<Verdict> & { code: string }, isFinal = true): void {
    this.refusal = { status, code, message: this.tokens.scrub(message) };
    if (!this.#goesOn("refused", this.refusal)) return;
    if (isFinal) this.end("denied");
    else this.#later(wait);
  }

  /** Reports something, and returns whether the handlers have left it to this attempt to go on. */
  #goesOn<Name extends keyof SocketEvents>(name: Name, value: SocketEvents[Name]): boolean {
    const life = this.#life;
    this.#reports.emit(name, value);
    return life === this.#life;
  }

  #later(least = 0): void {
    if (this.#backoff.attempts >= this.#settings.reconnectionAttempts) return this.end("stopped");
    this.#nextWake = 0;
    this.#earliest = Math.max(this.#earliest, performance.now() + least);
    this.#retryIn(this.#backoff.next());
    this.#become("offline"); // last, because its handlers may disconnect
  }

  /** Makes the next attempt after this wait, but not before `Retry-After`. */
  #retryIn(wait: number): void {
    const all = Math.max(0, this.#earliest - performance.now()) + wait;
    this.nextAttempt = Date.now() + all;
    this.timers.clear();
    this.timers.after(all, () => void this.#open());
  }

  /** Ends the connection or the attempt, if there is one. Returns the signal of the end of the next. */
  #forget(): AbortSignal {
    this.nextAttempt = undefined;
    this.#life.abort();
    this.#life = new AbortController();
    this.timers.clear();
    const websocket = this.#websocket;
    this.#websocket = undefined;
    if (websocket) websocket.onmessage = websocket.onclose = null; // what it still reports comes too late
    websocket?.close(1000);
    this.#owner.lost();
    return this.#life.signal;
  }

  #become(status: Status): void {
    if (status === this.status) return;
    this.status = status;
    this.#owner.became(status);
  }
}
