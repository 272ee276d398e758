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
  readonly #report: (gap: Gap) => void;
  /** The delay of the next report, in milliseconds. */
  readonly #delay: () => number;

  constructor(report: (gap: Gap) => void, delay: () => number) {
    this.#report = report;
    this.#delay = delay;
  }

  add(room: string, reason: string): void {
    this.#reasons.set(room, reason);
    this.#timer ??= setTimeout(() => {
      for (const [room, reason] of this.#take()) this.#report({ room, reason });
    }, this.#delay());
  }

  /** Drops all gaps without a report. */
  drop(): void {
    this.#take();
  }

  #take(): [string, string][] {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const all = [...this.#reasons];
    this.#reasons.clear();
    return all;
  }
}
