import type { Socket } from "./socket.js";

/** Milliseconds between two `typing:start` while somebody types. */
const EVERY = 4_000;
/** Milliseconds after which somebody who did not type any more has stopped. */
const ENDS = 5_000;

/** Says that one types in a thread, and that one stopped. */
export class Typing {
  #active = false;
  #told: number | undefined;
  #ends: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly socket: Socket,
    private readonly threadId: string,
  ) {}

  /** Until the function that is returned is called; before and after that nothing is said. */
  begin(): () => void {
    this.#active = true;
    return () => {
      this.stop();
      this.#active = false;
    };
  }

  /** To be called with every key. */
  start(): void {
    if (!this.#active || !this.socket.connected || !this.socket.isIn(`thread:${this.threadId}`)) return;
    const now = performance.now();
    if (this.#told === undefined || now - this.#told >= EVERY) {
      this.#told = now;
      this.socket.emit("typing:start", { thread_id: this.threadId });
    }
    clearTimeout(this.#ends);
    this.#ends = setTimeout(() => this.stop(), ENDS);
  }

  /** As when a message was sent. */
  stop(): void {
    clearTimeout(this.#ends);
    if (this.#told === undefined) return;
    this.#told = undefined;
    if (this.socket.isIn(`thread:${this.threadId}`)) this.socket.emit("typing:stop", { thread_id: this.threadId });
  }
}
