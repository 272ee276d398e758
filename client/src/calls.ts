/** The server refused a frame, or did not answer in time. */
export class SocketError extends Error {
  override readonly name = "SocketError";

  constructor(
    /** An error code of the protocol, or `timeout`, `closed`, `queue_full`, `token`. */
    readonly code: string,
    message: string,
    /** Seconds to wait before another attempt, if the server sent them. */
    readonly retryAfter?: number,
  ) {
    super(message);
  }
}

interface Pending {
  resolve: (data: never) => void;
  reject: (error: SocketError) => void;
  timer: ReturnType<typeof setTimeout>;
}

/** Calls that wait for their `ack` or `error`, by id. */
export class Calls {
  readonly #pending = new Map<number, Pending>();
  #last = 0;

  /** A new id, and the promise of its answer. Rejects with `SocketError`. */
  open<Answer>(timeout: number): { id: number; answer: Promise<Answer> } {
    const id = ++this.#last;
    const answer = new Promise<Answer>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new SocketError("timeout", `no answer within ${timeout} ms`));
      }, timeout);
      this.#pending.set(id, { resolve, reject, timer });
    });
    return { id, answer };
  }

  resolve(id: unknown, data: unknown): void {
    this.#take(id)?.resolve(data as never);
  }

  reject(id: unknown, error: SocketError): void {
    this.#take(id)?.reject(error);
  }

  /** Rejects every call that waits. */
  rejectAll(error: SocketError): void {
    for (const id of [...this.#pending.keys()]) this.reject(id, error);
  }

  #take(id: unknown): Pending | undefined {
    const pending = this.#pending.get(id as number);
    if (pending !== undefined) {
      clearTimeout(pending.timer);
      this.#pending.delete(id as number);
    }
    return pending;
  }
}
