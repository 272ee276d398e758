/** Timers that end together. */
export class Timers {
  readonly #all = new Set<ReturnType<typeof setTimeout>>();

  /** Calls `action` after `wait` milliseconds. */
  after(wait: number, action: () => void): void {
    const timer = setTimeout(() => {
      this.#all.delete(timer);
      action();
    }, wait);
    this.#all.add(timer);
  }

  clear(): void {
    for (const timer of this.#all) clearTimeout(timer);
    this.#all.clear();
  }
}
