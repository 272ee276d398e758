import { describe, expect, test, vi } from "vitest";
import type { Socket } from "../src/index.js";
import { FakeWebSocket, connectTo, leavesNothing, soon } from "./fake.js";

let socket: Socket;
leavesNothing(() => socket);

function verdict(status: number, headers: Record<string, string> = {}): typeof fetch {
  return () => Promise.resolve(new Response(null, { status, headers }));
}


describe("a refused handshake", () => {
  test.each([
    [401, "token_expired"],
    [403, "forbidden_origin"],
    [404, "not_found"],
  ])("ends in denied when the verdict is %i %s, and reports why", async (status, code) => {
    FakeWebSocket.script = ["refuse", "refuse", "refuse"];
    const reports: unknown[] = [];
    const error = { code, message: "the reason" };
    socket = connectTo({ fetch: () => Promise.resolve(Response.json({ error }, { status })) });
    socket.when("refused", (refusal) => reports.push(refusal));
    socket.when("status", (now) => now === "denied" && reports.push(now));
    await soon(60_000);
    expect(reports).toEqual([{ status, ...error }, "denied"]);
    expect(socket.refusal).toEqual({ status, ...error });
    expect(FakeWebSocket.made).toHaveLength(status === 401 ? 2 : 1);
    await expect(socket.connected()).rejects.toMatchObject(error);
  });

  test.each([404, 500, 502, 200])("is tried again when something else answers %i", async (status) => {
    FakeWebSocket.script = ["refuse"];
    const refusals: unknown[] = [];
    socket = connectTo({ fetch: verdict(status) });
    socket.when("refused", ({ code }) => refusals.push(code));
    await soon(501);
    expect([socket.status, refusals, socket.refusal]).toEqual(["connected", [`http_${status}`], undefined]);
  });

  test("names ALLOWED_ORIGINS when the page may not read the verdict, and tries again", async () => {
    vi.stubGlobal("location", { origin: "https://shop.example" });
    FakeWebSocket.script = ["refuse"];
    const asked = vi.fn((_: string, { mode }: { mode?: string } = {}) =>
      mode === "no-cors" ? Promise.resolve(Response.error()) : Promise.reject(new TypeError("Failed to fetch")),
    );
    socket = connectTo({ fetch: asked });
    await soon(5);
    vi.unstubAllGlobals();
    expect(socket.status).toBe("offline");
    expect(socket.refusal).toMatchObject({ status: 0, code: "unreadable" });
    expect(socket.refusal?.message).toBe("no answer for https://shop.example: is it in the server's ALLOWED_ORIGINS?");
    await soon(501);
    expect(socket.status).toBe("connected");
  });

  test.each(["SyntaxError", "SecurityError"])("of an address that the WebSocket does not accept (%s) is not tried again", async (name) => {
    let made = 0;
    class Strict {
      constructor(_: string, protocols: string[]) {
        made += 1;
        throw Object.assign(new Error(`no ${protocols.join()}`), { name });
      }
    }
    socket = connectTo({ url: "nonsense", WebSocket: Strict as never });
    await soon(60_000);
    expect([socket.status, made]).toEqual(["denied", 1]);
    expect(socket.refusal).toEqual({ status: 0, code: "forbidden", message: `WebSocket does not accept the url: ${name}` });
  });

  test("is retried after Retry-After also when the network is reported in the meantime", async () => {
    const page = new EventTarget();
    vi.stubGlobal("window", page);
    FakeWebSocket.script = ["refuse"];
    socket = connectTo({ fetch: verdict(503, { "Retry-After": "7" }) });
    await soon(1000);
    page.dispatchEvent(new Event("offline"));
    page.dispatchEvent(new Event("online"));
    await soon(5900);
    vi.unstubAllGlobals();
    expect(FakeWebSocket.made).toHaveLength(1);
    await soon(700);
    expect(FakeWebSocket.made).toHaveLength(2);
  });

  test("is tried again at the date of a Retry-After", async () => {
    FakeWebSocket.script = ["refuse"];
    socket = connectTo({ fetch: verdict(503, { "Retry-After": "Thu, 01 Jan 2026 00:00:07 GMT" }) });
    await soon(6900);
    expect(FakeWebSocket.made).toHaveLength(1);
    await soon(601);
    expect(socket.status).toBe("connected");
  });

  test("is tried again with the usual backoff when Retry-After is nonsense, or too large", async () => {
    FakeWebSocket.script = ["refuse", "refuse"];
    const answers = ["soon", "1e12"];
    socket = connectTo({ fetch: () => verdict(503, { "Retry-After": answers.shift() ?? "" })("") });
    await soon(450);
    expect(FakeWebSocket.made).toHaveLength(1);
    await soon(60);
    expect(FakeWebSocket.made).toHaveLength(2);
    await soon(60_000);
    expect(FakeWebSocket.made).toHaveLength(2);
    await soon(3_600_000);
    expect(socket.status).toBe("connected");
  });

  test("waits for the reason no longer than for a handshake", async () => {
    FakeWebSocket.script = ["refuse"];
    const hangs = (_: unknown, init?: RequestInit): Promise<Response> =>
      new Promise((_, reject) => init?.signal?.addEventListener("abort", () => reject(new Error("aborted"))));
    socket = connectTo({ fetch: hangs as typeof fetch, connectTimeout: 3000 });
    await soon(3000 + 501);
    expect(socket.status).toBe("connected");
  });

  test("stays denied when the browser reports network changes", async () => {
    vi.stubGlobal("window", new EventTarget());
    FakeWebSocket.script = ["refuse"];
    socket = connectTo({ fetch: verdict(403) });
    await soon(5);
    expect(socket.status).toBe("denied");
    window.dispatchEvent(new Event("offline"));
    window.dispatchEvent(new Event("online"));
    await soon(60_000);
    vi.unstubAllGlobals();
    expect(socket.status).toBe("denied");
    expect(FakeWebSocket.made).toHaveLength(1);
  });
});
