/** `where`: the room and position of what was published in one; empty for everything else. */
export type Handler<T> = (value: T, where: Where) => void;

export interface Where {
  room?: string;
  offset?: string;
}

/** Handlers by name. One that throws does not keep the others from being called. */
export class Emitter<Events extends object> {
  readonly #handlers = new Map<keyof Events, Set<{ call: Handler<never> }>>();

  /** Calls `handler` for each event of that name, until the function that is returned is called. */
  on<Name extends keyof Events>(name: Name, handler: Handler<Events[Name]>): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers);
    const entry = { call: handler as Handler<never> }; // the same function may be somebody else's, too
    handlers.add(entry);
    return () => handlers.delete(entry);
  }

  emit<Name extends keyof Events>(name: Name, value: Events[Name], where: Where = {}): void {
    for (const { call } of [...(this.#handlers.get(name) ?? [])] as { call: Handler<Events[Name]> }[]) {
      try {
        call(value, where);
      } catch (error) {
        // As an uncaught error of the page, not as ours.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
