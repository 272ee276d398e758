import type { ServerEvents } from "./events.js";

export type Member = ServerEvents["presence:state"]["members"][number];

export const NOBODY: readonly Member[] = [];
const CHANGES = new Set(["attendant:online", "attendant:away", "attendant:offline"]);

interface Group {
  /** Everybody, in the order of their names; a new list after every change, and only then. */
  members: readonly Member[];
  /** Up to where the last state holds; undefined while one is to come. */
  offset: string | undefined;
  /** The last change of each user after that, with its offset. */
  changes: Map<string, [offset: string, member: Member]>;
}

/** Who is present, by group: the last state and every change since. */
export class Presence {
  readonly #groups = new Map<string, Group>();

  constructor(private readonly changed: (group: string) => void) {}

  members(group: string): readonly Member[] {
    return this.#groups.get(group)?.members ?? NOBODY;
  }

  /** Takes what concerns it. */
  take(event: string, data: object, room: string | undefined, offset: string | undefined): void {
    if (event === "presence:state") {
      this.#replace(data as ServerEvents["presence:state"]);
    } else if (CHANGES.has(event) && room?.startsWith(PREFIX) && offset !== undefined) {
      this.#change(room.slice(PREFIX.length), offset, data as Member);
    }
  }

  /** A state of this room (of all, without one) is to come: what is known stays until then, and offsets may begin anew. */
  begin(room?: string): void {
    for (const [, group] of this.#of(room)) {
      group.offset = undefined;
      group.changes.clear();
    }
  }

  /** Nothing is known of this room (of any, without one) any more. */
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
    // A state is read while changes go on: one may have come before it that it does not know.
    for (const [user, [at]] of group.changes) if (!isAfter(at, offset)) group.changes.delete(user);
    const byUser = new Map(members.map((member) => [member.user_id, member]));
    for (const [user, [, member]] of group.changes) byUser.set(user, member);
    group.offset = offset;
    this.#show(name, byUser.values());
  }

  #change(name: string, offset: string, member: Member): void {
    const group = this.#group(name);
    // After a reconnect the changes that were missed come again, behind a state that knows them.
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
    if (group === undefined) this.#groups.set(name, (group = { members: NOBODY, offset: undefined, changes: new Map() }));
    return group;
  }
}

const PREFIX = "presence:";

/** Offsets are whole numbers that may be too large for ours. */
function isAfter(one: string, other: string): boolean {
  return one.length === other.length ? one > other : one.length > other.length;
}

function byName(a: Member, b: Member): number {
  return a.name.localeCompare(b.name) || a.user_id.localeCompare(b.user_id);
}
