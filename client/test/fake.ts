/** A WebSocket with a scripted, deterministic server, as strict as the real one. */

import { afterEach, beforeEach, expect, vi } from "vitest";
import { Socket, type SocketOptions } from "../src/index.js";

/** Gives each test of a file its own clock and server; when the test's socket has disconnected, nothing may be left of it. */
export function leavesNothing(socket: () => Socket): void {
  beforeEach(() => {
    vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
    FakeWebSocket.reset();
  });
  afterEach(() => {
    socket().disconnect();
    expect(FakeWebSocket.open).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
  });
}

/** Lets this time pass. */
export const soon = (milliseconds = 1): Promise<unknown> => vi.advanceTimersByTimeAsync(milliseconds);

type Sent = { event: string; data: Record<string, unknown>; id?: number };

export class FakeWebSocket {
  static made: FakeWebSocket[] = [];
  /** The results of the next handshakes: `accept` (default), `refuse`, or no answer. */
  static script: ("accept" | "refuse" | "hang" | "silent")[] = [];

  /** The `answers` of later sockets. */
  static answers: Record<string, unknown> = {};
  /** The rooms that the server joins automatically. */
  static rooms: Record<string, string> = { "user:7": "100" };
  /** The user of the next connections. */
  static user = { user_id: "7", role: "attendant" };
  /** The interval that the server announces, in seconds. */
  static heartbeat = 30;
  /** What the server announces; undefined for an older one. */
  static limits: { frame_bytes: number; rate: number; burst: number; rooms: number } | undefined;

  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason?: string }) => void) | null = null;
  onerror: (() => void) | null = null;
  readonly sent: Sent[] = [];
  /** Acks for events by name; a function answers from the data, `null` does not answer. */
  answers: Record<string, unknown> = FakeWebSocket.answers;
  rooms: Record<string, string> = FakeWebSocket.rooms;
  /** Whether the network is gone, so that a close is not reported. */
  silent = false;
  closed = false;
  number: number;

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {
    if (protocols.some((each) => /[^!#$%&'*+\-.^_`|~\w]/.test(each))) throw new SyntaxError("not a sub-protocol");
    this.number = FakeWebSocket.made.push(this);
    const fate = FakeWebSocket.script.shift() ?? "accept";
    if (fate === "silent") this.silent = true;
    if (fate === "refuse") setTimeout(() => this.fail(1006), 0);
    if (fate === "accept") {
      setTimeout(() => {
        if (this.closed) return;
        this.say("connection:ready", {
          connection_id: `c${this.number}`,
          namespace: "hub",
          ...FakeWebSocket.user,
          limits: FakeWebSocket.limits,
          heartbeat_interval: FakeWebSocket.heartbeat,
          expires_at: "2030-01-01T00:00:00.000Z",
          rooms: this.rooms,
        });
      }, 0);
    }
  }

  static get last(): FakeWebSocket {
    const last = FakeWebSocket.made.at(-1);
    if (last === undefined) throw new Error("expected a socket, got none");
    return last;
  }

  static get open(): FakeWebSocket[] {
    return FakeWebSocket.made.filter((each) => !each.closed);
  }

  static reset(): void {
    FakeWebSocket.made = [];
    FakeWebSocket.script = [];
    FakeWebSocket.answers = {};
    FakeWebSocket.rooms = { "user:7": "100" };
    FakeWebSocket.user = { user_id: "7", role: "attendant" };
    FakeWebSocket.limits = undefined;
    FakeWebSocket.heartbeat = 30;
  }

  send(text: string): void {
    const frame = JSON.parse(text) as Sent;
    this.sent.push(frame);
    if (frame.id === undefined) return;
    const answers = frame.event in this.answers ? this.answers : defaults;
    const answer = frame.event in answers ? answers[frame.event] : {};
    if (answer === null) return;
    const data = typeof answer === "function" ? (answer as (data: unknown) => unknown)(frame.data) : answer;
    const refused = typeof data === "object" && data !== null && "code" in data;
    queueMicrotask(() => this.say(refused ? "error" : "ack", data as object, { id: frame.id }));
  }

  say(event: string, data: object, more: object = {}): void {
    if (this.closed) return;
    this.onmessage?.({ data: JSON.stringify({ event, data, ...more }) });
  }

  message(thread: string, offset: string, id = offset): void {
    this.say("thread:message", { thread_id: thread, message_id: id }, { room: `thread:${thread}`, offset });
  }

  fail(code: number): void {
    if (this.closed) return;
    this.closed = true;
    if (!this.silent) this.onclose?.({ code });
  }

  close(code = 1005): void {
    this.fail(code);
  }

  events(name: string): Sent[] {
    return this.sent.filter((frame) => frame.event === name);
  }
}

const defaults: Record<string, unknown> = {
  join: ({ room }: { room: string }) => ({ room, offset: "200" }),
  "join:thread": ({ thread_id }: { thread_id: string }) => ({ room: `thread:${thread_id}`, offset: "200" }),
  resume: ({ rooms }: { rooms: Record<string, string> }) => ({
    rooms: Object.fromEntries(
      Object.entries(rooms).map(([room, offset]) => [room, { recovered: true, offset, missed: 0 }]),
    ),
  }),
  "auth:refresh": { expires_at: "2031-01-01T00:00:00.000Z" },
};

export function token(exp = Date.now() / 1000 + 3600, mark = "x"): string {
  return `${mark}.${btoa(JSON.stringify({ exp })).replaceAll("=", "")}.sig`;
}

export function connectTo(options: Partial<SocketOptions> = {}): Socket {
  return new Socket({
    url: "ws://server/hub/",
    getToken: () => token(),
    WebSocket: FakeWebSocket as unknown as typeof WebSocket,
    fetch: () => Promise.reject(new Error("no network")),
    random: () => 1,
    ...options,
  });
}
