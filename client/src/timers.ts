/** The longest time of a timer, in milliseconds: beyond it `setTimeout` fires at once. */
export const LONGEST = 2 ** 31 - 1;

/** Timers that end together. */
export class Timers {
  readonly #all = new Set<ReturnType<typeof setTimeout>>();

  /** Calls `action` after `wait` milliseconds. */
  after(wait: number, action: () => void): void {
    const timer = setTimeout(() => {
      this.#all.delete(timer);
      action();
    }, Math.min(wait, LONGEST));
    this.#all.add(timer);
  }

  clear(): void {
    for (const timer of this.#all) clearTimeout(timer);
    this.#all.clear();
  }
}
