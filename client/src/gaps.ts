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

  /** Drops the gap of a room that the client has left. */
  forget(room: string): void {
    this.#reasons.delete(room);
  }

  /** Drops all gaps without a report. */
  drop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#reasons.clear();
  }

  #report(): void {
    this.#timer = undefined;
    for (const [room, reason] of this.#reasons) {
      this.#reasons.delete(room);
      this.#reports.emit("gap", { room, reason }); // a handler may leave the others, or disconnect
    }
  }
}
