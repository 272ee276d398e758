/** The rooms that this client wants to be in, each with the offset of the last publication that it received. */
export class Rooms {
  readonly #offsets = new Map<string, string>();
  readonly #wanted = new Map<string, Set<object>>();
  readonly #entered = new Set<string>();
  /** Kinds of rooms that the server joins automatically; of the other kinds only wanted rooms are kept. */
  readonly #automatic = new Set(["user", "presence"]);

  /** Registers a user of the room; true if it is the first. */
  enter(room: string, who: object): boolean {
    const all = this.#wanted.get(room);
    if (all === undefined) this.#wanted.set(room, new Set([who]));
    else all.add(who);
    return all === undefined;
  }

  /** Removes a user of the room; true if it was the last. */
  leave(room: string, who: object): boolean {
    const all = this.#wanted.get(room);
    if (!all?.delete(who) || all.size > 0) return false;
    this.forget(room);
    return true;
  }

  /** Forgets a room, which the client enters again only if the server joins it automatically. */
  forget(room: string): void {
    this.#offsets.delete(room);
    if (this.#isAutomatic(room)) return;
    this.#wanted.delete(room);
    this.#entered.delete(room);
  }

  wants(room: string): boolean {
    return this.#wanted.has(room);
  }

  get wanted(): string[] {
    return [...this.#wanted.keys()];
  }

  /** The last offset received, by room. */
  get offsets(): Record<string, string> {
    return Object.fromEntries(this.#offsets);
  }

  /** Records that the server joins rooms of this kind automatically. */
  addAutomatic(room: string): void {
    this.#automatic.add(kindOf(room));
  }

  hasSeen(room: string, offset: string): void {
    if (!this.wants(room) && !this.#isAutomatic(room)) return; // sent before the room was left
    this.#offsets.set(room, offset);
    this.#entered.add(room);
  }

  isKnown(room: string): boolean {
    return this.#offsets.has(room);
  }

  /** Whether the client was in the room before, so that it may have missed publications. */
  wasIn(room: string): boolean {
    return this.#entered.has(room);
  }

  /** Forgets the offset after a gap, until the next publication. */
  lose(room: string): void {
    this.#offsets.delete(room);
  }

  #isAutomatic(room: string): boolean {
    return this.#automatic.has(kindOf(room));
  }
}

function kindOf(room: string): string {
  return room.slice(0, room.indexOf(":"));
}

/** The room of a thread's id, which has no colon; the name of any other room is unchanged. */
export function roomOf(name: string): string {
  return name.includes(":") ? name : `thread:${name}`;
}

/** The thread's id, if the room is a thread's. */
export function threadOf(room: string): string | undefined {
  return room.startsWith("thread:") ? room.slice("thread:".length) : undefined;
}
