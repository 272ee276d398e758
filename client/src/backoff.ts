export interface BackoffOptions {
  /** The longest first wait, in milliseconds. */
  reconnectionDelay: number;
  /** The longest wait of all, in milliseconds. */
  reconnectionDelayMax: number;
}

/**
 * The wait before the next attempt: full jitter after the cap (M. Brooker, "Exponential Backoff And Jitter"), so that
 * clients reconnect spread out, however long an outage lasted.
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
