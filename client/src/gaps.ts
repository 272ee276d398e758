import type { Emitter } from "./emitter.js";
import type { Settings } from "./options.js";
import type { SocketEvents } from "./reports.js";

/**
 * Gaps that were not reported yet. A loss affects all clients at the same moment; each client reports it after a random
 * delay, so that they do not all refetch from the backbone at once.
 */
export class Gaps {
  readonly #reasons = new Map<string, string>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #settings: Settings;
  readonly #reports: Emitter<SocketEvents>;

  constructor(settings: Settings, reports: Emitter<SocketEvents>) {
    this.#settings = settings;
    this.#reports = reports;
  }

  add(room: string, reason: string): void {
    this.#reasons.set(room, reason);
    this.#timer ??= setTimeout(() => this.#report(), this.#settings.random() * this.#settings.gapDelayMax);
  }

  /** Drops all gaps without a report. */
  drop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#reasons.clear();
  }

  #report(): void {
    const all = [...this.#reasons];
    this.drop();
    for (const [room, reason] of all) this.#reports.emit("gap", { room, reason });
  }
}
