import { SocketError, closed } from "./calls.js";
import type { Emitter } from "./emitter.js";
import { idOf, type Id } from "./ids.js";
import { checked, type Settings } from "./options.js";
import { bytesOf, Pace, type Limits } from "./pace.js";
import type { SocketEvents } from "./reports.js";

/** Events that are worth nothing later: they never wait. */
const EPHEMERAL = /^(typing:(start|stop)|cursor:move|heartbeat)$/;

interface Frame {
  text: string;
  /** Of a call. */
  id: number | undefined;
}

interface Call {
  resolve: (data: never) => void;
  reject: (error: SocketError) => void;
  timer: ReturnType<typeof setTimeout>;
}

/**
 * Everything that is sent, at the pace that the server allows. The client's own frames go first, and belong to one
 * connection; those of the page wait for the next one.
 */
export class Outbox {
  /** Calls that wait for their `ack` or `error`, by id, whether they were sent or not. */
  readonly #calls = new Map<unknown, Call>();
  #last = 0;
  #own: Frame[] = [];
  #waiting: Frame[] = [];
  /** One of the client's own that goes before all others, however long the server wants the client to wait. */
  #urgent: Frame | undefined;
  #most = 0;
  #pace: Pace | undefined;
  #send: ((text: string) => void) | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #settings: Settings;
  readonly #reports: Emitter<SocketEvents>;

  constructor(settings: Settings, reports: Emitter<SocketEvents>) {
    this.#settings = settings;
    this.#reports = reports;
  }

  /** Sends what waits, and everything else from now on, on this connection: as the server allows, if it says so. */
  begin(send: (text: string) => void, limits: Limits | undefined): void {
    this.#send = send;
    this.#most = limits?.frame_bytes || Infinity;
    this.#pace = limits && new Pace(limits);
    this.#flush();
  }

  /** The connection is lost: calls that were sent fail, and what waits goes on waiting, unless `isOver`. */
  end(isOver = false): void {
    clearTimeout(this.#timer);
    this.#send = this.#urgent = undefined;
    this.#own = [];
    if (isOver) this.#waiting = [];
    for (const id of this.#calls.keys()) if (!this.#waiting.some((frame) => frame.id === id)) this.settle(id, closed());
  }

  /** Sends an event of the page, or keeps it for later. */
  put(event: string, data: object, id?: number): void {
    const frame = frameOf(event, data, id);
    this.#waiting.push(frame);
    this.#flush();
    if (this.#waiting.at(-1) !== frame) return; // it was sent
    this.#waiting = this.#waiting.filter((each) => this.#isWanted(each));
    const isEphemeral = EPHEMERAL.test(event);
    if (!isEphemeral && this.#waiting.length <= this.#settings.queueSize) return;
    this.#waiting.pop();
    if (id !== undefined || !isEphemeral) this.settle(id, new SocketError("queue_full", `the queue is full: ${event}`));
  }

  /** `put()`, and the promise of the answer. */
  call<Answer>(event: string, data: object, timeout: number | undefined): Promise<Answer> {
    return this.#open(timeout, (id) => this.put(event, data, id));
  }

  /** Sends an event of the client itself on this connection; `handle` gets the answer before another frame arrives. */
  ask<Answer>(event: string, data: object, handle?: (answer: Answer) => void): Promise<Answer> {
    const send = (id: number): void => {
      const frame = frameOf(event, data, id);
      if (event !== "auth:refresh") this.#own.push(frame);
      else this.#own.unshift((this.#urgent = frame)); // it keeps the connection alive
      this.#flush();
    };
    return this.#open(undefined, send, handle);
  }

  /** Handles an answer, or an error, of the server: that of a call if it has an `id`. */
  settle(id: unknown, answer: unknown): void {
    const call = this.#calls.get(id);
    clearTimeout(call?.timer);
    this.#calls.delete(id);
    if (!(answer instanceof SocketError)) return call?.resolve(answer as never);
    if (answer.code === "rate_limited") this.#pace?.pause((answer.retryAfter ?? 1) * 1000);
    if (id === undefined || id === null) this.complain(answer);
    else call?.reject(answer);
  }

  /** Reports an error that is no answer of a call, unless it only says that the connection was lost. */
  complain(error: SocketError): void {
    if (error.code !== "closed") this.#reports.emit("error", error);
  }

  /** Calls `send` with a new id. The promise rejects with a `SocketError`, or what `send` throws. */
  #open<Answer>(given: number | undefined, send: (id: number) => void, handle?: (answer: Answer) => void): Promise<Answer> {
    return new Promise((done, reject) => {
      const timeout = checked("timeout", given, "number", this.#settings.ackTimeout) as number;
      const id = ++this.#last;
      const late = (): void => this.settle(id, new SocketError("timeout", `no answer in ${timeout} ms`));
      const resolve = (answer: Answer): void => (handle?.(answer), done(answer));
      this.#calls.set(id, { resolve, reject, timer: setTimeout(late, timeout) });
      send(id);
    });
  }

  /** Sends what may be sent now, and the rest later. */
  #flush(): void {
    clearTimeout(this.#timer);
    for (;;) {
      const list = this.#own.length ? this.#own : this.#waiting;
      const frame = list[0];
      if (!this.#send || !frame) return;
      const size = bytesOf(frame.text);
      const isDue = size <= this.#most && this.#isWanted(frame);
      const wait = isDue && frame !== this.#urgent && this.#pace?.take();
      if (wait) {
        this.#timer = setTimeout(() => this.#flush(), wait);
        return;
      }
      list.shift(); // before its error is reported, because the handlers may send, too
      if (isDue) this.#send(frame.text);
      else this.settle(frame.id, new SocketError("too_large", `${size} bytes, above ${this.#most}`));
    }
  }

  /** Whether the call, if it is one, has not timed out. */
  #isWanted({ id }: Frame): boolean {
    return id === undefined || this.#calls.has(id);
  }
}

function frameOf(event: string, data: object, id?: number): Frame {
  if ("thread_id" in data) data = { ...data, thread_id: idOf(data.thread_id as Id) };
  return { text: JSON.stringify({ event, data, id }), id };
}
