/** The id of a thread, a user, …: text, or a whole number, which becomes text. */
export type Id = string | number | bigint;

/** An id as the server writes it. Throws a `TypeError` for anything that is no id, such as a fraction. */
export function idOf(id: Id): string {
  if (typeof id === "string" || typeof id === "bigint" || Number.isSafeInteger(id)) return String(id);
  throw new TypeError(`id: expected a string or a safe integer, got ${String(id)}`);
}

/** A name in Unicode's normalization form C, as the server writes it: otherwise one name could be written in two ways. */
export function nameOf(name: Id): string {
  return idOf(name).normalize();
}
