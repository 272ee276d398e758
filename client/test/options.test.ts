import { afterEach, describe, expect, test, vi } from "vitest";
import { Socket, type SocketOptions } from "../src/index.js";
import { FakeWebSocket, connectTo, token } from "./fake.js";

afterEach(() => vi.unstubAllGlobals());

const TIMES = ["reconnectionDelay", "reconnectionDelayMax", "connectTimeout", "gapDelayMax", "ackTimeout"] as const;
const COUNTS = ["reconnectionAttempts", "queueSize"] as const;

/** The message of the error of this option. */
function refusal(options: Record<string, unknown>): string {
  try {
    connectTo({ autoConnect: false, ...options } as Partial<SocketOptions>);
  } catch (error) {
    return `${(error as Error).name}: ${(error as Error).message}`;
  }
  return "none";
}

describe("an option", () => {
  test("that is undefined has its default", async () => {
    vi.useFakeTimers();
    FakeWebSocket.reset();
    FakeWebSocket.script = Array<"refuse">(500).fill("refuse");
    const unset = Object.fromEntries(
      [...TIMES, ...COUNTS, "autoConnect", "random", "fetch"].map((name) => [name, undefined]),
    ) as Partial<SocketOptions>;
    vi.stubGlobal("fetch", () => Promise.reject(new Error("no network")));
    const socket = connectTo({ ...unset, random: undefined });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(socket.status).toBe("offline");
    expect(FakeWebSocket.made.length).toBeLessThan(40); // and not 200 a second
    socket.disconnect();
    vi.useRealTimers();
  });

  test.each([...TIMES, ...COUNTS])("%s that is no number in its range is refused", (name) => {
    for (const value of [null, "500", true, {}, 5n]) expect(refusal({ [name]: value })).toMatch(`TypeError: ${name}: expected a number, got `);
    for (const value of [NaN, -1]) expect(refusal({ [name]: value })).toMatch(`RangeError: ${name}: expected `);
  });

  test.each(["reconnectionDelay", "reconnectionDelayMax", "connectTimeout", "ackTimeout"])("%s cannot be 0, or endless", (name) => {
    expect(refusal({ [name]: 0 })).toBe(`RangeError: ${name}: expected 1 to ${name === "reconnectionDelay" ? 20_000 : 2 ** 31 - 1}, got 0`);
    expect(refusal({ [name]: Infinity })).toMatch(`RangeError: ${name}: expected `);
  });

  test.each([...COUNTS, "gapDelayMax"])("%s may be 0", (name) => expect(refusal({ [name]: 0 })).toBe("none"));

  test.each(COUNTS)("%s may be endless", (name) => expect(refusal({ [name]: Infinity })).toBe("none"));

  test("reconnectionDelay is at most reconnectionDelayMax", () => {
    expect(refusal({ reconnectionDelay: 500, reconnectionDelayMax: 499 })).toBe("RangeError: reconnectionDelay: expected 1 to 499, got 500");
    expect(refusal({ reconnectionDelay: 500, reconnectionDelayMax: 500 })).toBe("none");
  });

  test.each(["getToken", "fetch", "random", "WebSocket"])("%s must be a function", (name) => {
    expect(refusal({ [name]: null })).toMatch(`TypeError: ${name}: expected a function`);
    expect(refusal({ [name]: "eyJ.secret.token" })).toMatch(/^TypeError: \w+: expected a function\b.*, got string$/);
  });

  test.each([undefined, null, "", 7])("url cannot be %j", (url) => {
    const got = typeof url === "number" ? "number" : url === "" ? '""' : String(url);
    expect(refusal({ url })).toBe(`TypeError: url: expected a string or a function, got ${got}`);
  });

  test("is named when all are missing", () => {
    expect(() => new Socket(undefined as never)).toThrow("url: expected a string or a function, got undefined");
  });

  test("never shows a token that was given for the function", () => {
    expect(refusal({ getToken: "eyJ.secret.token" })).not.toContain("secret");
  });
});

test("a platform without a WebSocket is an error of the constructor", () => {
  vi.stubGlobal("WebSocket", undefined);
  expect(() => new Socket({ url: "ws://server/hub/", getToken: () => token() })).toThrow(
    "WebSocket: expected a function, such as that of `ws`, got undefined",
  );
});
