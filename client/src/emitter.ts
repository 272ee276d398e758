/** `where` has the room and offset of an event that was published in a room, and is empty for all other events. */
export type Handler<T> = (value: T, where: Where) => void;

export interface Where {
  room?: string | undefined;
  offset?: string | undefined;
}

/** Handlers by name. A handler that throws does not affect the others. */
export class Emitter<Events extends object> {
  readonly #handlers = new Map<keyof Events, Set<Handler<never>>>();

  /** Calls `handler` for each event of that name, until the returned function is called. */
  on<Name extends keyof Events>(name: Name, handler: Handler<Events[Name]>): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers);
    const entry: Handler<Events[Name]> = (value, where) => handler(value, where); // the same function may be registered twice
    handlers.add(entry);
    return () => handlers.delete(entry);
  }

  emit<Name extends keyof Events>(name: Name, value: Events[Name], where: Where = {}): void {
    for (const call of [...(this.#handlers.get(name) ?? [])] as Handler<Events[Name]>[]) {
      try {
        call(value, where);
      } catch (error) {
        // The page reports it as an uncaught error.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
