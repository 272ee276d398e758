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

/** The longest time of a timer, in milliseconds: beyond it `setTimeout` fires at once. */
const LONGEST = 2 ** 31 - 1;

/** The default of an option, or a value of its type; and the range of a number. */
type Rule = readonly [value: unknown, least?: number, most?: number];

const RULES: Readonly<Record<keyof SocketOptions, Rule>> = {
  url: [""],
  getToken: [Number],
  autoConnect: [true],
  reconnectionDelay: [500],
  reconnectionDelayMax: [20_000],
  reconnectionAttempts: [Infinity, 0, Infinity],
  connectTimeout: [10_000],
  gapDelayMax: [2_000, 0],
  ackTimeout: [10_000],
  queueSize: [100, 0, Infinity],
  WebSocket: [Number],
  fetch: [(...request: Parameters<FetchLike>) => globalThis.fetch(...request)],
  random: [Math.random],
};
const NEEDED = ["url", "getToken", "WebSocket"];

/** The options with their defaults. Throws a `TypeError` or a `RangeError` that names the option and what it may be. */
export function validated(options: SocketOptions): Settings {
  const given = { ...options, WebSocket: options?.WebSocket === undefined ? globalThis.WebSocket : options.WebSocket };
  const names = Object.keys(RULES) as (keyof SocketOptions)[];
  const settings = Object.fromEntries(names.map((name) => [name, checked(name, given[name])])) as unknown as Settings;
  checked("reconnectionDelay", settings.reconnectionDelay, settings.reconnectionDelayMax);
  return settings;
}

/** The value of an option, or its default; `limit` is another bound of a number. */
export function checked<Name extends keyof SocketOptions>(name: Name, given: unknown, limit = Infinity): Settings[Name] {
  const [usual, least = 1, end = LONGEST] = RULES[name];
  const value = given === undefined && !NEEDED.includes(name) ? usual : given;
  const most = Math.min(end, limit);
  const type = typeof value;
  if (value === "" || (type !== typeof usual && !(name === "url" && type === "function"))) {
    // Not the value, which may be a token.
    const hint = name === "WebSocket" ? ": on Node before 22, pass that of `ws`" : "";
    throw new TypeError(`${name}: expected a ${typeof usual}, got ${value === null ? value : type}${hint}`);
  }
  if (type === "number" && !((value as number) >= least && (value as number) <= most)) {
    throw new RangeError(`${name}: expected ${least} to ${most}, got ${value}`);
  }
  return value as Settings[Name];
}
