/** Publications in a room may have been missed: refetch its data. New publications follow. */
export interface Gap {
  room: string;
  reason: string;
}

/**
 * Gaps that were not reported yet. A loss affects all clients at the same moment; each client reports it after a random
 * delay, so that they do not all refetch from the backbone at once.
 */
export class Gaps {
  readonly #reasons = new Map<string, string>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly report: (gap: Gap) => void,
    /** The delay of the next report, in milliseconds. */
    private readonly delay: () => number,
  ) {}

  add(room: string, reason: string): void {
    this.#reasons.set(room, reason);
    this.#timer ??= setTimeout(() => {
      for (const [room, reason] of this.#take()) this.report({ room, reason });
    }, this.delay());
  }

  /** Drops all gaps without a report, and returns their rooms. */
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
