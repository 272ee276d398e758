import { LONGEST } from "./timers.js";
import type { GetToken } from "./token.js";

/** What the client needs of a WebSocket: that of browsers, of Node, of React Native, or of `ws`. */
export interface WebSocketLike {
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** What the client needs of `fetch`. */
export type FetchLike = (
  url: string,
  init?: any,
) => Promise<{ status: number; headers: { get(name: string): string | null }; json(): Promise<unknown> }>;

/** The options of a `Socket`; all times are in milliseconds. An option that is `undefined` has its default. */
export interface SocketOptions {
  /**
   * The namespace's URL, for example `wss://example.com/hub/`; or a function that returns it, or a promise of it, and is
   * called before every attempt.
   */
  url: string | (() => string | Promise<string>);
  /** Returns the access token; called again shortly before the last one expires. */
  getToken: GetToken;
  /** Whether to connect at once (default: true); otherwise call `connect()`. */
  autoConnect?: boolean | undefined;
  /** The longest first wait before a reconnect (default: 500). */
  reconnectionDelay?: number | undefined;
  /** The longest wait of all (default: 20,000), at least `reconnectionDelay`. */
  reconnectionDelayMax?: number | undefined;
  /** Attempts in a row before the socket gives up (default: Infinity). */
  reconnectionAttempts?: number | undefined;
  /** The time until a handshake, or a request for a token, counts as failed (default: 10,000). */
  connectTimeout?: number | undefined;
  /** The longest random delay before a gap is reported; 0: none (default: 2,000). */
  gapDelayMax?: number | undefined;
  /** The time until a call without an answer fails (default: 10,000). */
  ackTimeout?: number | undefined;
  /** Events that may wait for a connection (default: 100). Typing and cursor events never wait. */
  queueSize?: number | undefined;
  /** Replaces the global `WebSocket`, for tests and platforms without one. */
  WebSocket?: (new (url: string, protocols: string[]) => WebSocketLike) | undefined;
  /** Replaces the global `fetch`. */
  fetch?: FetchLike | undefined;
  /** Replaces `Math.random`, for tests. */
  random?: (() => number) | undefined;
}

/** The options with their defaults. */
export type Settings = { readonly [Name in keyof SocketOptions]-?: Exclude<SocketOptions[Name], undefined> };

/** The type of an option, or the types; its default, if it has one; and the range of a number. */
type Rule = readonly [type: string, usual?: unknown, least?: number, most?: number];

/** The options with their defaults. Throws a `TypeError` or a `RangeError` that names the option and what it may be. */
export function validated(options: Partial<SocketOptions> = {}): Settings {
  const { reconnectionDelayMax = 20_000 } = options;
  const rules: Record<keyof SocketOptions, Rule> = {
    url: ["string or a function"],
    getToken: ["function"],
    autoConnect: ["boolean", true],
    reconnectionDelayMax: ["number", reconnectionDelayMax],
    reconnectionDelay: ["number", 500, 1, reconnectionDelayMax],
    reconnectionAttempts: ["number", Infinity, 0, Infinity],
    connectTimeout: ["number", 10_000],
    gapDelayMax: ["number", 2_000, 0],
    ackTimeout: ["number", 10_000],
    queueSize: ["number", 100, 0, Infinity],
    WebSocket: ["function, such as that of `ws`", globalThis.WebSocket],
    fetch: ["function", (...request: Parameters<FetchLike>) => globalThis.fetch(...request)],
    random: ["function", Math.random],
  };
  const valid = Object.entries(rules).map(([name, rule]) => [name, checked(name, options[name as keyof SocketOptions], ...rule)]);
  return Object.fromEntries(valid) as Settings;
}

/** The value of an option, or its default. */
export function checked(name: string, given: unknown, type: string, usual?: unknown, least = 1, most = LONGEST): unknown {
  const value = given === undefined ? usual : given;
  if (value === "" || !type.includes(typeof value)) {
    // Not the value, which may be a token.
    throw new TypeError(`${name}: expected a ${type}, got ${value ? typeof value : String(value) || '""'}`);
  }
  if (typeof value === "number" && !(value >= least && value <= most)) {
    throw new RangeError(`${name}: expected ${least} to ${most}, got ${value}`);
  }
  return value;
}
