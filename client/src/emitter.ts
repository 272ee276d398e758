/** `where` has the room and offset of an event that was published in a room, and is empty for all other events. */
export type Handler<T> = (value: T, where: Where) => void;

export interface Where {
  room?: string | undefined;
  offset?: string | undefined;
}

/**
 * Handlers by name. A handler that throws does not affect the others. What is reported while a handler runs is reported
 * after it, so that all handlers see the same order; and none is called after its removal.
 */
export class Emitter<Events extends object> {
  readonly #handlers = new Set<[name: unknown, handler: Handler<never>]>(); // the same function may be registered twice
  readonly #due: (() => unknown)[] = [];

  /** Calls `handler` for each event of that name, until the returned function is called. */
  on<Name extends keyof Events>(name: Name, handler: Handler<Events[Name]>): () => void {
    const entry: [Name, Handler<Events[Name]>] = [name, handler];
    this.#handlers.add(entry);
    return () => this.#handlers.delete(entry);
  }

  emit<Name extends keyof Events>(name: Name, value: Events[Name], where: Where = {}): void {
    const due = this.#due;
    const isNested = due.length > 0;
    for (const entry of this.#handlers) {
      if (entry[0] === name) due.push(() => this.#handlers.has(entry) && entry[1](value as never, where));
    }
    if (isNested) return;
    for (const call of due) {
      try {
        call();
      } catch (error) {
        // The page reports it as an uncaught error.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
    due.length = 0;
  }
}
