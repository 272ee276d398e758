/** Something in a room may have been missed: fetch what you show of it anew. You are live from here. */
export interface Gap {
  room: string;
  reason: string;
}

/**
 * Gaps that nobody was told of yet. A loss happens to all clients at the same moment; each tells its page at a moment of
 * its own, so that what they fetch does not fall upon a backbone as a herd.
 */
export class Gaps {
  readonly #reasons = new Map<string, string>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly tell: (gap: Gap) => void,
    /** Milliseconds that this client waits. */
    private readonly delay: () => number,
  ) {}

  add(room: string, reason: string): void {
    this.#reasons.set(room, reason);
    this.#timer ??= setTimeout(() => {
      for (const [room, reason] of this.#take()) this.tell({ room, reason });
    }, this.delay());
  }

  /** Nobody is told any more; returns the rooms. */
  drop(): string[] {
    return this.#take().map(([room]) => room);
  }

  #take(): [string, string][] {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const all = [...this.#reasons];
    this.#reasons.clear();
    return all;
  }
}
