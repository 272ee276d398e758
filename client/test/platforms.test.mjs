/** Other platforms than browsers, in processes of their own: Node with `ws`, Node without a WebSocket, and React Native's globals. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { build } from "esbuild";
import { afterAll, beforeAll, expect, test, vi } from "vitest";

vi.setConfig({ testTimeout: 30_000, hookTimeout: 30_000 });

const run = promisify(execFile);
const client = join(import.meta.dirname, "..");
const folder = mkdtempSync(join(tmpdir(), "platforms-"));
const core = join(folder, "core.mjs");
const token = 'x.e30.x';

beforeAll(() => build({ entryPoints: [join(client, "src/index.ts")], bundle: true, format: "esm", outfile: core }));
afterAll(() => rmSync(folder, { recursive: true }));

/** The output of lines of a module, in a process of its own. */
async function output(lines, ...options) {
  const code = `import { Socket } from ${JSON.stringify(core)};\n${lines}`;
  const { stdout } = await run("node", [...options, "--input-type=module", "--eval", code], { cwd: client, timeout: 20_000 });
  return stdout.trim().split("\n");
}

test("a failed attempt with `ws` does not end the process, and the next one follows", async () => {
  const port = await closedPort();
  const lines = await output(`
    import WebSocket from "ws";
    let attempts = 0;
    class Counted extends WebSocket { constructor(...given) { super(...given); attempts += 1; } }
    const socket = new Socket({ url: "ws://127.0.0.1:${port}/", getToken: () => "${token}", WebSocket: Counted, reconnectionDelay: 20, reconnectionDelayMax: 20 });
    socket.when("status", (status) => {
      if (attempts < 3 || status === "stopped") return;
      console.log("alive", status);
      socket.disconnect();
    });
  `);
  expect(lines[0]).toMatch(/^alive (offline|connecting)$/);
});

test("disconnect() during an attempt with `ws` does not end the process", async () => {
  const server = createServer(() => undefined); // never answers a handshake
  server.on("upgrade", () => undefined);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const lines = await output(`
    import WebSocket from "ws";
    const socket = new Socket({ url: "ws://127.0.0.1:${server.address().port}/", getToken: () => "${token}", WebSocket });
    setTimeout(() => socket.disconnect(), 200);
    setTimeout(() => console.log(socket.status), 400);
  `);
  server.closeAllConnections();
  server.close();
  expect(lines).toEqual(["stopped"]);
});

test("without a WebSocket the constructor throws one sentence", async () => {
  const lines = await output(`
    delete globalThis.WebSocket;
    try { new Socket({ url: "ws://127.0.0.1:1/", getToken: () => "${token}" }); } catch (error) { console.log(String(error)); }
  `);
  expect(lines).toEqual(["TypeError: WebSocket: expected a function, such as that of `ws`, got undefined"]);
});

/** The globals of React Native: a window without events, no document, no location, and its own WebSocket. */
const REACT_NATIVE = `
  globalThis.window = globalThis;
  Object.defineProperty(globalThis, "navigator", { value: { product: "ReactNative" }, configurable: true });
  const made = [];
  globalThis.WebSocket = class {
    readyState = 0;
    constructor(url, protocols, options) {
      made.push(this);
      Object.assign(this, { url, protocols, options });
      setTimeout(() => {
        if (this.readyState !== 0) return;
        this.readyState = 1;
        this.onopen?.({ type: "open" });
        const data = { connection_id: "c" + made.length, user_id: "7", role: "attendant", heartbeat_interval: 30, rooms: {} };
        this.onmessage?.({ type: "message", data: JSON.stringify({ event: "connection:ready", data }) });
      }, 5);
    }
    send(text) {
      if (this.readyState === 0) throw new Error("INVALID_STATE_ERR");
      const { id } = JSON.parse(text);
      if (!this.isDead) setTimeout(() => this.onmessage?.({ type: "message", data: JSON.stringify({ event: "ack", id, data: {} }) }), 1);
    }
    close(code) {
      if (this.readyState > 1) return;
      this.readyState = 3;
      setTimeout(() => this.onclose?.({ type: "close", code, reason: "" }), 1);
    }
    lose() {
      this.readyState = 3;
      this.onerror?.({ type: "error", message: "Software caused connection abort" });
      this.onclose?.({ type: "close", code: 1006, reason: "Software caused connection abort" });
    }
  };
  const AppState = {
    currentState: "active",
    handlers: new Set(),
    addEventListener(type, handler) { this.handlers.add(handler); return { remove: () => this.handlers.delete(handler) }; },
    become(state) { this.currentState = state; for (const handler of this.handlers) handler(state); },
  };
  const NetInfo = {
    handlers: new Set(),
    addEventListener(handler) { this.handlers.add(handler); handler({ isConnected: true, type: "wifi" }); return () => this.handlers.delete(handler); },
    become(state) { for (const handler of this.handlers) handler(state); },
  };
  const options = { url: "wss://example.com/hub/", getToken: () => "${token}", fetch: () => Promise.reject(new TypeError("Network request failed")) };
  const until = async (is) => { while (!is()) await new Promise((resolve) => setTimeout(resolve, 5)); };
`;

test("under React Native's globals a socket connects, and comes back with wake() and reconnect()", async () => {
  const lines = await output(`
    ${REACT_NATIVE}
    let share = 1; // of the longest wait: without wake() there is no attempt for 20 s
    const socket = new Socket({ ...options, reconnectionDelay: 20_000, random: () => share });
    AppState.addEventListener("change", (state) => state === "active" && socket.wake());
    let type;
    NetInfo.addEventListener((network) => {
      if (!network.isConnected) return;
      if (type !== undefined && network.type !== type) socket.reconnect();
      type = network.type;
      socket.wake();
    });
    await socket.connected();
    console.log(made.length, made[0].protocols.join(), made[0].options);
    NetInfo.become({ isConnected: false, type: "none" });
    AppState.become("background");
    made[0].lose();
    console.log(socket.status);
    share = 0.0001;
    AppState.become("active");
    await socket.connected();
    console.log(made.length);
    NetInfo.become({ isConnected: true, type: "cellular" });
    await until(() => made.length === 3);
    await socket.connected();
    console.log(socket.status, made.map((each) => each.readyState).join());
    socket.disconnect();
  `);
  expect(lines).toEqual([`1 realtime.v1,bearer.${token} undefined`, "offline", "2", "connected 3,3,1"]);
});

async function closedPort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}
