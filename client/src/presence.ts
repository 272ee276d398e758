import type { ServerEvents } from "./events.js";
import type { Source } from "./sharing.js";
import type { Socket } from "./socket.js";

/** A present user of a group: `user_id`, `name`, `status` and `since`. */
export type Member = ServerEvents["presence:state"]["members"][number];

export const NO_MEMBERS: readonly Member[] = [];
const CHANGES = new Set(["attendant:online", "attendant:away", "attendant:offline"]);

interface Group {
  /** All members, sorted by name; a new list after every change, and only then. */
  members: readonly Member[];
  /** The offset of the last state; undefined while the client waits for one. */
  offset: string | undefined;
  /** The last change of each user after that state, with its offset. */
  changes: Map<string, [offset: string, member: Member]>;
}

/** The present users by group: the last state and every change since. */
export class Presence {
  readonly #groups = new Map<string, Group>();

  constructor(private readonly changed: (group: string) => void) {}

  members(group: string): readonly Member[] {
    return this.#groups.get(group)?.members ?? NO_MEMBERS;
  }

  /** Applies an event of the server, if it concerns presence. */
  take(event: string, data: object, room: string | undefined, offset: string | undefined): void {
    if (event === "presence:state") {
      this.#replace(data as ServerEvents["presence:state"]);
    } else if (CHANGES.has(event) && room?.startsWith(PREFIX) && offset !== undefined) {
      this.#change(room.slice(PREFIX.length), offset, data as Member);
    }
  }

  /** Expects a new state of this room (or of all): the members stay until then, and offsets may start anew. */
  begin(room?: string): void {
    for (const [, group] of this.#of(room)) {
      group.offset = undefined;
      group.changes.clear();
    }
  }

  /** Forgets the members of this room (or of all). */
  forget(room?: string): void {
    for (const [name] of this.#of(room)) {
      this.#groups.delete(name);
      this.changed(name);
    }
  }

  #of(room: string | undefined): [string, Group][] {
    return [...this.#groups].filter(([name]) => room === undefined || room === PREFIX + name);
  }

  #replace({ group: name, members, offset }: ServerEvents["presence:state"]): void {
    const group = this.#group(name);
    // A state is read while changes go on: a newer change may have arrived before it.
    for (const [user, [at]] of group.changes) if (!isAfter(at, offset)) group.changes.delete(user);
    const byUser = new Map(members.map((member) => [member.user_id, member]));
    for (const [user, [, member]] of group.changes) byUser.set(user, member);
    group.offset = offset;
    this.#show(name, byUser.values());
  }

  #change(name: string, offset: string, member: Member): void {
    const group = this.#group(name);
    // After a reconnect the missed changes are replayed behind a state that already includes them.
    if (group.offset !== undefined && !isAfter(offset, group.offset)) return;
    group.changes.set(member.user_id, [offset, member]);
    if (group.offset === undefined) return;
    this.#show(name, [...group.members.filter((each) => each.user_id !== member.user_id), member]);
  }

  #show(name: string, members: Iterable<Member>): void {
    this.#group(name).members = [...members].filter((each) => each.status !== "offline").sort(byName);
    this.changed(name);
  }

  #group(name: string): Group {
    let group = this.#groups.get(name);
    if (group === undefined) this.#groups.set(name, (group = { members: NO_MEMBERS, offset: undefined, changes: new Map() }));
    return group;
  }
}

/** The present users of a group, as the socket keeps them. */
export function presenceSource(socket: Socket, group: string): Source<readonly Member[]> {
  const listen = (changed: () => void): (() => void) =>
    socket.when("presence", (presence) => {
      if (presence.group === group) changed();
    });
  return { initial: NO_MEMBERS, get: () => socket.presence(group), listen };
}

const PREFIX = "presence:";

/** Offsets are integers that may exceed `Number.MAX_SAFE_INTEGER`. */
function isAfter(one: string, other: string): boolean {
  return one.length === other.length ? one > other : one.length > other.length;
}

function byName(a: Member, b: Member): number {
  return a.name.localeCompare(b.name) || a.user_id.localeCompare(b.user_id);
}
