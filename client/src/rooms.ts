import { nameOf, type Id } from "./ids.js";

/** The room of a thread's id, which has no colon; or any other room of that name. Throws a `TypeError` for anything else. */
export function roomOf(id: Id): string {
  const name = nameOf(id);
  return name.includes(":") ? name : `thread:${name}`;
}

/** The thread's id, if the room is a thread's. */
export function threadOf(room: string): string | undefined {
  return room.startsWith("thread:") ? room.slice("thread:".length) : undefined;
}
