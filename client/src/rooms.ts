/** Rooms that this client wants to be in, and up to where it has what was published there. */
export class Rooms {
  readonly #offsets = new Map<string, string>();
  readonly #wanted = new Map<string, Set<object>>();
  readonly #entered = new Set<string>();
  /** Kinds of rooms that the server enters by itself; rooms of all others are wanted, or nothing of them is kept. */
  readonly #automatic = new Set(["user", "presence"]);

  /** One more user wants the room; true when it is the first. */
  enter(room: string, who: object): boolean {
    const all = this.#wanted.get(room);
    if (all === undefined) this.#wanted.set(room, new Set([who]));
    else all.add(who);
    return all === undefined;
  }

  /** One user less wants it; true when it was the last. */
  leave(room: string, who: object): boolean {
    const all = this.#wanted.get(room);
    if (!all?.delete(who) || all.size > 0) return false;
    this.forget(room);
    return true;
  }

  /** The client is not in the room any more, and does not enter it again unless the server does so. */
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

  /** Where the client stands, by room. */
  get offsets(): Record<string, string> {
    return Object.fromEntries(this.#offsets);
  }

  /** The server entered this room by itself, and so it does with others of the kind. */
  addAutomatic(room: string): void {
    this.#automatic.add(kindOf(room));
  }

  hasSeen(room: string, offset: string): void {
    if (!this.wants(room) && !this.#isAutomatic(room)) return; // it was on its way when the room was left
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

  /** After a gap it is not known where the client stands there, until the next message. */
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

/** The room of a thread, whose id has no colon; the name of any other room is the room. */
export function roomOf(name: string): string {
  return name.includes(":") ? name : `thread:${name}`;
}

/** The id of a room's thread. */
export function threadOf(room: string): string | undefined {
  return room.startsWith("thread:") ? room.slice("thread:".length) : undefined;
}
