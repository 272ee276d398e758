import type { Emitter } from "./emitter.js";
import type { ServerEvents } from "./events.js";
import type { SocketEvents } from "./reports.js";

/** A present user of a group: `user_id`, `name`, `status` and `since`. */
export type Member = ServerEvents["presence:state"]["members"][number];

const NO_MEMBERS: readonly Member[] = [];

interface Group {
  /** All members, sorted by name; a new list after every change, and only then. */
  members: readonly Member[];
  /** The offset of the last state; undefined while the client waits for one. */
  offset: string | undefined;
  /** The users of that state, and their changes since, each with its offset. */
  users: Map<string, [offset: string, member: Member]>;
}

/** The present users by group: the last state and every change since. */
export class Presence {
  readonly #groups = new Map<string, Group>();
  readonly #reports: Emitter<SocketEvents>;

  constructor(reports: Emitter<SocketEvents>) {
    this.#reports = reports;
    reports.on("left", ({ room }) => this.forget(room));
  }

  members(group: string): readonly Member[] {
    return this.#groups.get(group)?.members ?? NO_MEMBERS;
  }

  /** Applies an event of the server, if it concerns presence. */
  take(event: string, data: object, room: string | undefined, offset: string | undefined): void {
    if (event === "presence:state") {
      this.#replace(data as ServerEvents["presence:state"]);
    } else if (event === "room:gap" || event === "connection:ready") {
      this.#expect((data as { room?: string }).room);
    } else if (event.startsWith("attendant:") && room?.startsWith(PREFIX) && offset) {
      this.#change(room.slice(PREFIX.length), offset, data as Member);
    }
  }

  /** Forgets the members of this room (or of all). */
  forget(room?: string): void {
    for (const [name] of this.#of(room)) {
      this.#groups.delete(name);
      this.#changed(name);
    }
  }

  #changed(group: string): void {
    this.#reports.emit("presence", { group });
  }

  /** Expects a new state of this room (or of all): the members stay until then, and offsets may start anew. */
  #expect(room: string | undefined): void {
    for (const [, group] of this.#of(room)) {
      group.offset = undefined;
      group.users.clear();
    }
  }

  #of(room: string | undefined): [string, Group][] {
    return [...this.#groups].filter(([name]) => room === undefined || room === PREFIX + name);
  }

  #replace({ group: name, members, offset }: ServerEvents["presence:state"]): void {
    const group = this.#group(name);
    // A state is read while changes go on: a newer change may have arrived before it.
    const newer = [...group.users].filter(([, [at]]) => isAfter(at, offset));
    group.users = new Map([...members.map((member) => [member.user_id, [offset, member]] as const), ...newer] as never);
    group.offset = offset;
    this.#show(name, group);
  }

  #change(name: string, offset: string, member: Member): void {
    const group = this.#group(name);
    // After a reconnect the missed changes are replayed behind a state that already includes them.
    if (group.offset && !isAfter(offset, group.offset)) return;
    group.users.set(member.user_id, [offset, member]);
    if (group.offset) this.#show(name, group);
  }

  #show(name: string, group: Group): void {
    group.members = [...group.users.values()].map(([, member]) => member).filter((each) => each.status !== "offline").sort(byName);
    this.#changed(name);
  }

  #group(name: string): Group {
    const group = this.#groups.get(name) ?? { members: NO_MEMBERS, offset: undefined, users: new Map() };
    this.#groups.set(name, group);
    return group;
  }
}

const PREFIX = "presence:";

/** Offsets are integers that may exceed `Number.MAX_SAFE_INTEGER`. */
function isAfter(one: string, other: string): boolean {
  return one.length === other.length ? one > other : one.length > other.length;
}

function byName(a: Member, b: Member): number {
  return a.name.localeCompare(b.name) || a.user_id.localeCompare(b.user_id);
}
