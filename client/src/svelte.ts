import { getContext, onDestroy, onMount, setContext } from "svelte";
import type { Id } from "./ids.js";
import type { Member } from "./presence.js";
import { Sockets, presenceSource, type Namespaces, type SocketState, type Source, type User } from "./sharing.js";
import type { Socket } from "./socket.js";
import { threadSource, type ThreadState } from "./thread.js";

export type { Member } from "./presence.js";
export type { Namespaces, User } from "./sharing.js";
export type { ThreadState, Typist } from "./thread.js";

/** A store that components read with `$`. */
export interface Readable<T> {
  /** Calls `run` at once and after every change, until the returned function is called. */
  subscribe(this: void, run: (value: T) => void): () => void;
}

/** A store of a thread. */
export interface ThreadStore extends Readable<ThreadState> {
  /** Call it with every key. */
  sendTyping: () => void;
  /** Call it when a message was sent. */
  stopTyping: () => void;
}

const KEY = Symbol("realtime-sockets");

function store<T>({ initial, get, listen }: Source<T>): Readable<T> {
  return {
    subscribe(run) {
      // Rendering on a server subscribes, too, and must not enter anything.
      if (typeof window === "undefined") {
        run(initial);
        return () => undefined;
      }
      const end = listen(() => run(get()));
      run(get());
      return end;
    },
  };
}

/**
 * Provides one socket for each namespace to this component and those below. Call it while the component is initialised.
 *
 * @param namespaces The options of each namespace, as of `new Socket()`, without `autoConnect`.
 * @param user A store of the id of the user who is logged in, or of null; `toStore` of `svelte/store` makes one. When it
 * changes, every socket discards everything of the last user and connects with a token of the new one; with null it does
 * not connect.
 * @example
 * provideSockets({ hub: { url: "wss://example.com/hub/", getToken } }, toStore(() => user.id));
 */
export function provideSockets(namespaces: Namespaces, user?: Readable<User>): void {
  const sockets = new Sockets(namespaces);
  if (user !== undefined) onDestroy(user.subscribe((latest) => sockets.change(latest)));
  setContext(KEY, sockets);
}

/**
 * The one connection to a namespace, which all components share. It is open while a component that uses it is mounted, and
 * a second longer. Call it while the component is initialised.
 *
 * @param namespace A key of the `namespaces` of `provideSockets()`; throws an `Error` for any other.
 * @returns The socket, and stores of its state: `connected`, `status`, and the `refusal` of the last attempt.
 * @example
 * const { socket, connected, status, refusal } = useSocket("hub");
 * onMount(() => socket.on("thread:message", ({ message_id }) => console.log(message_id)));
 */
export function useSocket(namespace: string): { socket: Socket } & { [Name in keyof SocketState]: Readable<SocketState[Name]> } {
  const sockets = getContext<Sockets | undefined>(KEY);
  if (sockets === undefined) throw new Error("useSocket() needs provideSockets() in this component or one above");
  const shared = sockets.get(namespace);
  const { initial, get, listen } = shared.state;
  onMount(() => listen(() => undefined));
  const storeOf = <Name extends keyof SocketState>(name: Name): Readable<SocketState[Name]> =>
    store({ initial: initial[name], get: () => get()[name], listen: (changed) => shared.watch(changed) });
  return { socket: shared.socket, connected: storeOf("connected"), status: storeOf("status"), refusal: storeOf("refusal") };
}

/**
 * A store of a thread's state. The client is in the thread while the store has a subscriber, such as a component that reads
 * `$thread`, and a second longer. Any number of stores may be of the same thread.
 *
 * @param socket The socket of `useSocket()`.
 * @param threadId The thread's id; undefined or null: no thread. Derive the store if the id changes: `$derived(useThread(socket, id))`.
 * @returns A store of `joined`, `refused` and `typists`, with `sendTyping`, to be called with every key, and `stopTyping`, to
 * be called when a message was sent. After `refused` a later subscriber asks again.
 * @example
 * const thread = useThread(socket, "42");
 */
export function useThread(socket: Socket, threadId: Id | null | undefined): ThreadStore {
  const { sendTyping, stopTyping, ...source } = threadSource(socket, threadId);
  return { ...store(source), sendTyping, stopTyping };
}

/**
 * A store of the present users of a group, sorted by name. The socket keeps the list, so a later subscriber gets it, too.
 *
 * @param socket The socket of `useSocket()`.
 * @param group The group's name; undefined or null: none.
 * @example
 * const members = usePresence(socket, "attendants");
 */
export function usePresence(socket: Socket, group: Id | null | undefined): Readable<readonly Member[]> {
  return store(presenceSource(socket, group));
}
