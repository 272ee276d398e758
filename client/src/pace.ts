/** What a connection may send, as `connection:ready` announces it; 0: without limit. */
export interface Limits {
  frame_bytes: number;
  /** Frames a second. */
  rate: number;
  /** Frames at once. */
  burst: number;
}

/** The share of the limit that is used: pongs, heartbeats, and frames that the network delivers together, count as well. */
const SHARE = 0.8;

/** Says when the next frame may be sent (GCRA, the leaky bucket of ATM networks). */
export class Pace {
  /** Milliseconds from one frame to the next. */
  readonly #interval: number;
  /** Milliseconds by which frames may be early, together. */
  readonly #slack: number;
  #due = -Infinity;

  constructor({ rate, burst }: Limits) {
    this.#interval = rate > 0 ? 1000 / (rate * SHARE) : 0;
    this.#slack = Math.max(0, burst * SHARE - 1) * this.#interval;
  }

  /** Counts a frame and returns 0 if it may be sent now; otherwise the milliseconds that it has to wait. */
  take(): number {
    const now = performance.now(); // unlike Date it is never set back
    const due = Math.max(this.#due, now - this.#slack);
    if (due > now) return due - now;
    this.#due = due + this.#interval;
    return 0;
  }

  /** The server counted more than this: nothing may be sent for this time, in milliseconds. */
  pause(wait: number): void {
    this.#due = performance.now() + wait;
  }
}

/** The bytes of a frame in UTF-8. JSON has no unpaired surrogates, which `encodeURI` would not accept. */
export function bytesOf(text: string): number {
  return encodeURI(text).replace(/%../g, ".").length;
}
