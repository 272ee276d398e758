import { nameOf, type Id } from "./ids.js";

/** How the name of a thread's room begins. */
export const THREAD = "thread:";

/** The room of a thread's id, which has no colon; or any other room of that name. Throws a `TypeError` for anything else. */
export function roomOf(id: Id): string {
  const name = nameOf(id);
  return name.includes(":") ? name : THREAD + name;
}
