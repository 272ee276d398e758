/** Rooms that this client wants to be in, and up to where it has what was published there. */
export class Rooms {
  readonly #offsets = new Map<string, string>();
  readonly #joined = new Map<string, number>();
  readonly #entered = new Set<string>();

  /** One more wants the thread; true when it is the first. */
  enter(threadId: string): boolean {
    const count = this.#joined.get(threadId) ?? 0;
    this.#joined.set(threadId, count + 1);
    return count === 0;
  }

  /** One less wants it; true when it was the last. */
  leave(threadId: string): boolean {
    const count = this.#joined.get(threadId) ?? 0;
    if (count > 1) {
      this.#joined.set(threadId, count - 1);
      return false;
    }
    this.forget(threadId);
    return count === 1;
  }

  /** Whoever wanted it will not get it (any more). */
  forget(threadId: string): void {
    this.#joined.delete(threadId);
    this.#entered.delete(`thread:${threadId}`);
    this.#offsets.delete(`thread:${threadId}`);
  }

  wants(threadId: string): boolean {
    return this.#joined.has(threadId);
  }

  get threads(): string[] {
    return [...this.#joined.keys()];
  }

  /** What a `resume` sends. */
  get offsets(): Record<string, string> {
    return Object.fromEntries(this.#offsets);
  }

  hasSeen(room: string, offset: string): void {
    this.#offsets.set(room, offset);
    this.#entered.add(room);
  }

  isKnown(room: string): boolean {
    return this.#offsets.has(room);
  }

  /** Whether the client was in the room before, so that it may have missed something. */
  wasIn(room: string): boolean {
    return this.#entered.has(room);
  }

  /** After a gap nobody knows where the client stands there, until the next message. */
  lose(room: string): void {
    this.#offsets.delete(room);
  }
}

export function threadOf(room: string): string | undefined {
  return room.startsWith("thread:") ? room.slice("thread:".length) : undefined;
}
