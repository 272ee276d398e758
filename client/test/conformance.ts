/** Plays a case of `conformance/` (its README specifies the format) against the client, over real WebSockets of `ws`. */

import { Socket, type SocketOptions } from "../src/index.js";
import { WebSocket, WebSocketServer, http, type Remote, type Request, type Server } from "./wire.js";

export type Value = unknown;
type Data = Record<string, Value>;
type Step = Data & { times?: number };
export type Case = {
  name: string;
  steps: Step[];
  tokens?: { name?: string; raw?: string; expires_in?: number; user_id?: string }[];
  options?: Data;
  limit?: { rate: number; burst: number };
  invalid?: boolean;
};
type Frame = { event: string; data?: Data; id?: number };
type Report = { what: string; data: Data };

/** Milliseconds that a step may wait. */
const PATIENCE = 30_000;
const READY = {
  namespace: "hub",
  user_id: "7",
  role: "attendant",
  heartbeat_interval: 30,
  expires_at: "2030-01-01T00:00:00.000Z",
  rooms: { "user:7": "100" },
};

/** The options by their names in the cases; those that hold seconds become milliseconds. */
const OPTIONS: Record<string, [name: string, unit: number]> = {
  reconnection_delay: ["reconnectionDelay", 1000],
  reconnection_attempts: ["reconnectionAttempts", 1],
  connect_timeout: ["connectTimeout", 1000],
  ack_timeout: ["ackTimeout", 1000],
  queue_size: ["queueSize", 1],
  url: ["url", 1],
};

const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));
const isData = (value: Value): value is Data => typeof value === "object" && value !== null && !Array.isArray(value);
const plain = <Kind>(value: Value): Kind => value as Kind;

/** Whether there is at least what is expected; `exactly`: and nothing else. */
function contains(found: Value, expected: Value, exactly = false): boolean {
  if (!isData(expected) || !isData(found)) return JSON.stringify(found) === JSON.stringify(expected);
  if (exactly && Object.keys(found).length !== Object.keys(expected).length) return false;
  return Object.entries(expected).every(([name, value]) => name in found && contains(found[name], value, exactly));
}

function check(holds: boolean, problem: string): void {
  if (!holds) throw new Error(problem);
}

/** As the real server answers. */
function usualAnswer({ event, data = {} }: Frame): Data {
  if (event === "join") return { room: data.room, offset: "200" };
  if (event === "join:thread") return { room: `thread:${String(data.thread_id)}`, offset: "200" };
  if (event !== "resume") return {};
  const rooms = Object.entries(plain<Record<string, string>>(data.rooms));
  return { rooms: Object.fromEntries(rooms.map(([room, offset]) => [room, { recovered: true, offset, missed: 0 }])) };
}

function tokenOf({ name, raw, expires_in = 3600, user_id = "7" }: NonNullable<Case["tokens"]>[number]): string {
  if (raw !== undefined) return raw;
  const claims = btoa(JSON.stringify({ exp: Date.now() / 1000 + expires_in, user_id }));
  return `${name}.${claims.replaceAll("=", "").replaceAll("+", "-").replaceAll("/", "_")}.sig`;
}

interface Handshake {
  request: Request;
  token: string;
  accept: () => Promise<Remote>;
  refuse: (answer: { status: number; headers: Data; body: string } | undefined) => void;
}

/** The server of a case, the page that uses the client, and the script that both follow. */
export class Player {
  /** Everything that the client has reported, as text. */
  readonly seen: string[] = [];
  readonly tokens: string[];
  readonly #named = new Map<string, string>();
  readonly #handshakes: Handshake[] = [];
  readonly #optional: Data[] = [];
  readonly #reports: Report[] = [];
  readonly #calls = new Map<string, Promise<Value>>();
  readonly #leaving = new Map<string, () => void>();
  readonly #server: Server;
  #refusal: { status: number; headers: Data; body: string } | undefined;
  #remote: Remote | undefined;
  #frames: Frame[] = [];
  #lastId: number | undefined;
  #numbers = 0;
  #asked = 0;
  #endedAt = 0;
  #free: number;
  #countedAt = Date.now();
  #tooFast = 0;
  #socket: Socket | undefined;

  constructor(private readonly script: Case) {
    const specs = script.tokens ?? [{ name: "a" }];
    this.tokens = specs.map(tokenOf);
    specs.forEach(({ name }, index) => this.#named.set(name ?? "", this.tokens[index] ?? ""));
    this.#free = script.limit?.burst ?? 0;
    this.#server = http.createServer((_, response) => {
      const { status, headers, body } = this.#refusal ?? { status: 204, headers: {}, body: undefined };
      response.writeHead(status, headers).end(body);
    });
    const upgrades = new WebSocketServer({ noServer: true, handleProtocols: () => "realtime.v1" });
    this.#server.on("upgrade", (request, wire, head) => {
      this.#handshakes.push({
        request,
        token: credential(request),
        accept: () => new Promise((resolve) => upgrades.handleUpgrade(request, wire, head, (remote) => resolve(this.#read(remote)))),
        refuse: (answer) => {
          if (answer === undefined) return wire.destroy();
          const lines = Object.entries({ ...answer.headers, Connection: "close", "Content-Length": answer.body.length });
          wire.end(`HTTP/1.1 ${answer.status} Refused\r\n${lines.map((line) => line.join(": ")).join("\r\n")}\r\n\r\n${answer.body}`);
        },
      });
    });
  }

  /** Plays the case. Rejects with the step that does not hold. */
  async play(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    try {
      if (this.script.invalid) await this.#isInvalid();
      else await this.#steps();
    } finally {
      this.#socket?.disconnect();
      this.#server.closeAllConnections();
      this.#server.close();
    }
    const leaks = this.tokens.filter((token) => token.trim().length > 6 && this.seen.join("\n").includes(token.trim()));
    check(leaks.length === 0, "a token is in a report");
    check(this.#tooFast === 0, `${this.#tooFast} frames were too fast`);
  }

  /** The client refuses its options when it is made, or ends at once. */
  async #isInvalid(): Promise<void> {
    try {
      this.#connect();
    } catch (error) {
      this.seen.push(String(error));
      return;
    }
    await this.#until(() => this.#report("denied", {}));
  }

  async #steps(): Promise<void> {
    this.#connect();
    for (const [number, step] of this.script.steps.entries()) {
      try {
        await this.#step(step);
      } catch (error) {
        const state = JSON.stringify({ step, frames: this.#frames, reports: this.#reports });
        throw new Error(`step ${number}: ${String(error)} ${state.slice(0, 2000)}`, { cause: error });
      }
    }
    this.#checkFrames();
  }

  async #step(step: Step): Promise<void> {
    const [verb = ""] = Object.keys(step);
    const value = plain<never>(step[verb]);
    for (let count = 0; count < (step.times ?? 1); count += 1) {
      if (verb === "do") this.#act(step, count);
      else if (verb === "expect") await this.#expect(value, step);
      else if (verb === "may") this.#optional.push(value);
      else if (verb === "send") this.#remote?.send(JSON.stringify(this.#filled(value)));
      else if (verb === "accept") await this.#accept(value);
      else if (verb === "refuse") await this.#refuse(value);
      else if (verb === "close" || verb === "cut") this.#end(step);
      else if (verb === "told") await this.#until(() => this.#report(value, step.data));
      else if (verb === "not_told") check(this.#report(value, step.data) === undefined, "it was told");
      else if (verb === "result") check(contains(await this.#calls.get(value), step.data ?? {}), "another result");
      else if (verb === "failure") check((await this.#failure(value)) === step.code, "another error");
      else if (verb === "no_handshake") await this.#staysAway(value);
      else throw new Error(`unknown step ${verb}`);
    }
  }

  // --- The server ------------------------------------------------------------------------------

  #read(remote: Remote): Remote {
    remote.on("message", (text) => {
      const frame = JSON.parse(text.toString()) as Frame;
      if (this.script.limit !== undefined) this.#count(this.script.limit);
      if (frame.event === "heartbeat" && frame.id !== undefined) this.#acknowledge("ack", frame.id, {});
      this.#frames.push(frame);
    });
    return remote;
  }

  #count({ rate, burst }: { rate: number; burst: number }): void {
    const now = Date.now();
    this.#free = Math.min(burst, this.#free + ((now - this.#countedAt) / 1000) * rate);
    this.#countedAt = now;
    if (this.#free < 1) this.#tooFast += 1;
    else this.#free -= 1;
  }

  #acknowledge(event: "ack" | "error", id: number, data: Value): void {
    this.#remote?.send(JSON.stringify({ event, id, data }));
  }

  async #next(step: Data): Promise<Handshake> {
    const handshake = await this.#until(() => this.#handshakes.shift());
    check(Date.now() - this.#endedAt >= Number(step.not_before ?? 0) * 1000, "the next attempt came too early");
    const token = this.#named.get(String(step.token)) ?? step.token;
    check(token === undefined || handshake.token === token, `another token: ${handshake.token}`);
    const resumes = new URL(handshake.request.url, "http://server").searchParams.get("resume") === "1";
    check(step.resume === undefined || step.resume === resumes, handshake.request.url);
    return handshake;
  }

  async #accept(step: Data): Promise<void> {
    this.#checkFrames();
    const handshake = await this.#next(step);
    this.#frames = [];
    this.#refusal = undefined;
    this.#remote = await handshake.accept();
    this.#numbers += 1;
    if (step.ready === null) return;
    const data = { connection_id: `c${this.#numbers}`, ...READY, ...plain<Data>(step.ready ?? {}) };
    this.#remote.send(JSON.stringify({ event: "connection:ready", data }));
  }

  async #refuse(step: Data): Promise<void> {
    const handshake = await this.#next(step);
    const error = step.error && JSON.stringify({ error: step.error }).replace("$token", handshake.token);
    const answer = { status: Number(step.status), headers: plain<Data>(step.headers ?? {}), body: String(error ?? step.body ?? "") };
    this.#refusal = answer.status === 0 ? undefined : answer;
    this.#endedAt = Date.now();
    handshake.refuse(this.#refusal);
  }

  #end(step: Step): void {
    this.#endedAt = Date.now();
    const close = step.close as { code: number; reason?: string } | undefined;
    if (close === undefined) this.#remote?.terminate();
    else this.#remote?.close(close.code, close.reason);
  }

  async #expect(wanted: Data, step: Step): Promise<void> {
    const frame = await this.#until(() => this.#frame(wanted));
    this.#lastId = frame.id;
    if (frame.id === undefined || frame.event === "heartbeat" || step.answer === null) return;
    if (step.error === undefined) this.#acknowledge("ack", frame.id, step.answer ?? usualAnswer(frame));
    else this.#acknowledge("error", frame.id, step.error);
  }

  #frame(wanted: Data): Frame | undefined {
    const { event, data } = this.#filled(wanted) as Frame;
    const fits = (frame: Frame): boolean => frame.event === event && (data === undefined || contains(frame.data ?? {}, data, true));
    return take(this.#frames, fits);
  }

  /** A value with what stands for tokens, long texts and the id of the last frame. */
  #filled(value: Value): Value {
    if (value === "$last") return this.#lastId;
    if (!isData(value)) return value;
    if ("$token" in value) return this.#named.get(String(value.$token));
    if ("$text" in value) return "x".repeat(Number(value.$text));
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, this.#filled(item)]));
  }

  #checkFrames(): void {
    const isTaken = (frame: Frame): boolean =>
      frame.event === "heartbeat" || this.#optional.some((wanted) => contains(frame, this.#filled(wanted)));
    check(this.#frames.every(isTaken), "there are frames that no step took");
  }

  async #staysAway(seconds: number): Promise<void> {
    await pause(seconds * 1000);
    check(this.#handshakes.length === 0, "there was another attempt");
  }

  // --- The page --------------------------------------------------------------------------------

  #connect(): void {
    const given = Object.entries(this.script.options ?? {}).map(([name, value]) => {
      const [option, unit] = OPTIONS[name] ?? [name, 1];
      return [option, typeof value === "number" ? value * unit : value];
    });
    const options = { url: `ws://127.0.0.1:${this.#server.address().port}/hub/`, reconnectionDelay: 10, ...Object.fromEntries(given) } as Data;
    const socket = new Socket({
      reconnectionDelayMax: Math.max(20, Number(options.reconnectionDelay) || 0),
      gapDelayMax: 0,
      autoConnect: false,
      getToken: () => this.tokens[Math.min(this.#asked++, this.tokens.length - 1)] ?? "",
      WebSocket,
      ...options,
    } as unknown as SocketOptions);
    this.#socket = socket;
    this.#listen(socket);
    socket.connect();
  }

  #listen(socket: Socket): void {
    socket.when("status", (status) => this.#tell(status === "offline" ? "lost" : status, {}));
    for (const name of ["refused", "joined", "left", "gap", "error"]) {
      socket.when(name as "left", (data) => this.#tell(name, { ...data, ...(data instanceof Error ? { message: data.message } : {}) }));
    }
    const events = this.script.steps.map(({ send }) => (send as Frame | undefined)?.event);
    for (const event of new Set(events)) {
      if (event === undefined || event === "ack" || event === "error" || event.startsWith("room:")) continue;
      socket.on(event as "thread:message", (data, meta) => this.#tell("event", { event, data, ...meta }));
    }
  }

  #tell(what: string, data: Data): void {
    this.seen.push(JSON.stringify(data));
    this.#reports.push({ what, data });
  }

  #report(what: string, data: Value): Report | undefined {
    return take(this.#reports, (report) => report.what === what && contains(report.data, data ?? {}));
  }

  #act(step: Step, count: number): void {
    const room = plain<string>(step.room === "$n" ? count : step.room);
    const act = (): void => {
      if (step.do === "join") this.#leaving.set(String(room), this.#client.join(room));
      else if (step.do === "leave") this.#leaving.get(String(room))?.();
      else if (step.do === "stop") this.#client.disconnect();
      else if (step.do === "send") this.#client.emit(step.event as "presence:away", this.#filled(step.data) as never);
      else this.#call(step);
    };
    if (step.fails === true) this.#fails(act);
    else act();
  }

  #call(step: Step): void {
    const answer = this.#client.call(step.event as "presence:away", this.#filled(step.data) as never);
    answer.catch(() => undefined);
    this.#calls.set(String(step.as), answer);
  }

  get #client(): Socket {
    if (this.#socket === undefined) throw new Error("expected a client");
    return this.#socket;
  }

  #fails(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.seen.push(String(error));
      return;
    }
    throw new Error("it did not fail");
  }

  async #failure(name: string): Promise<string> {
    try {
      await this.#calls.get(name);
    } catch (error) {
      this.seen.push(String(error));
      return (error as { code: string }).code;
    }
    return "";
  }

  async #until<Found>(condition: () => Found | undefined): Promise<Found> {
    const deadline = Date.now() + PATIENCE;
    for (;;) {
      const found = condition();
      if (found !== undefined) return found;
      if (Date.now() > deadline) throw new Error("it did not come");
      await pause(5);
    }
  }
}

/** The one token that a handshake carries, and not in its address. */
function credential({ url, headers }: Request): string {
  const offered = (headers["sec-websocket-protocol"] ?? "").split(",").map((each) => each.trim());
  const tokens = offered.filter((each) => each.startsWith("bearer.")).map((each) => each.slice("bearer.".length));
  const bearing = headers.authorization?.replace("Bearer ", "");
  const all = [...tokens, ...(bearing === undefined ? [] : [bearing])];
  const [token = ""] = all;
  const isRight = all.length === 1 && !url.includes(token) && (bearing !== undefined || offered.includes("realtime.v1"));
  return isRight ? token : `${all.length} credentials`;
}

function take<Item>(items: Item[], fits: (item: Item) => boolean): Item | undefined {
  const index = items.findIndex(fits);
  return index < 0 ? undefined : items.splice(index, 1)[0];
}
