export interface BackoffOptions {
  /** Milliseconds that the first wait is at most. */
  reconnectionDelay: number;
  /** Milliseconds that any wait is at most. */
  reconnectionDelayMax: number;
}

/**
 * How long to wait before the next attempt: full jitter after the cap (M. Brooker, "Exponential Backoff And Jitter"),
 * so that after an outage clients come back spread out, however long it lasted.
 */
export class Backoff {
  #attempts = 0;

  constructor(
    private readonly options: BackoffOptions,
    private readonly random: () => number = Math.random,
  ) {}

  get attempts(): number {
    return this.#attempts;
  }

  /** Milliseconds until the next attempt. */
  next(): number {
    const most = Math.min(this.options.reconnectionDelayMax, this.options.reconnectionDelay * 2 ** this.#attempts);
    this.#attempts += 1;
    return this.random() * most;
  }

  reset(): void {
    this.#attempts = 0;
  }
}
