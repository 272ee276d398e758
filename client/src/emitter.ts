/** `where`: the room and position of what was published in one; empty for everything else. */
export type Handler<T> = (value: T, where: Where) => void;

export interface Where {
  room?: string;
  offset?: string;
}

/** Handlers by name. One that throws does not keep the others from being called. */
export class Emitter<Events extends object> {
  readonly #handlers = new Map<keyof Events, Set<Handler<never>>>();

  /** Calls `handler` for each event of that name, until the function that is returned is called. */
  on<Name extends keyof Events>(name: Name, handler: Handler<Events[Name]>): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers);
    handlers.add(handler);
    return () => handlers.delete(handler);
  }

  emit<Name extends keyof Events>(name: Name, value: Events[Name], where: Where = {}): void {
    for (const handler of [...(this.#handlers.get(name) ?? [])] as Handler<Events[Name]>[]) {
      try {
        handler(value, where);
      } catch (error) {
        // As an uncaught error of the page, not as ours.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
