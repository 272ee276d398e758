/** Rooms that this client wants to be in, and up to where it has what was published there. */
export class Rooms {
  readonly #offsets = new Map<string, string>();
  readonly #wanted = new Map<string, Set<object>>();
  readonly #entered = new Set<string>();

  /** One more wants the thread; true when it is the first. */
  enter(threadId: string, who: object): boolean {
    const all = this.#wanted.get(threadId);
    if (all === undefined) this.#wanted.set(threadId, new Set([who]));
    else all.add(who);
    return all === undefined;
  }

  /** One less wants it; true when it was the last. */
  leave(threadId: string, who: object): boolean {
    const all = this.#wanted.get(threadId);
    if (!all?.delete(who) || all.size > 0) return false;
    this.forget(threadId);
    return true;
  }

  /** Whoever wanted it will not get it (any more). */
  forget(threadId: string): void {
    this.#wanted.delete(threadId);
    this.#entered.delete(`thread:${threadId}`);
    this.#offsets.delete(`thread:${threadId}`);
  }

  wants(threadId: string): boolean {
    return this.#wanted.has(threadId);
  }

  get threads(): string[] {
    return [...this.#wanted.keys()];
  }

  /** Where one stands, by room. */
  get offsets(): Record<string, string> {
    return Object.fromEntries(this.#offsets);
  }

  hasSeen(room: string, offset: string): void {
    const threadId = threadOf(room);
    if (threadId !== undefined && !this.wants(threadId)) return; // it was on its way when the thread was left
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
