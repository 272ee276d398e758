import type { Socket } from "./socket.js";

/** Milliseconds between two `typing:start` while the user types. */
const EVERY = 4_000;
/** Milliseconds without a key after which the user has stopped. */
const ENDS = 5_000;

/** Reports to a thread that the user types, and that the user stopped. */
export class Typing {
  #users = 0;
  #reported: number | undefined;
  #ends: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly socket: Socket,
    private readonly threadId: string,
  ) {}

  /** Starts to report, until each returned function was called. */
  begin(): () => void {
    this.#users += 1;
    return () => {
      this.#users -= 1;
      if (this.#users === 0) this.stop();
    };
  }

  /** Call it with every key. */
  start(): void {
    if (this.#users === 0 || this.socket.status !== "connected" || !this.socket.isIn(`thread:${this.threadId}`)) return;
    const now = performance.now();
    if (this.#reported === undefined || now - this.#reported >= EVERY) {
      this.#reported = now;
      this.socket.emit("typing:start", { thread_id: this.threadId });
    }
    clearTimeout(this.#ends);
    this.#ends = setTimeout(() => this.stop(), ENDS);
  }

  /** Call it when a message was sent. */
  stop(): void {
    clearTimeout(this.#ends);
    if (this.#reported === undefined) return;
    this.#reported = undefined;
    if (this.socket.isIn(`thread:${this.threadId}`)) this.socket.emit("typing:stop", { thread_id: this.threadId });
  }
}
