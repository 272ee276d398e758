import type { ServerEvents } from "./events.js";
import type { Id } from "./ids.js";
import { all, type Source } from "./sharing.js";
import type { Socket } from "./socket.js";
import { Typing } from "./typing.js";

/** Milliseconds before an unused thread is left, because StrictMode and page changes use it again at once. */
const LINGER = 1_000;
/** Milliseconds after which a typist is dropped, because a killed process reports nothing. */
const TYPIST_EXPIRES = 12_000;

/** A user who is typing in a thread. */
export interface Typist {
  userId: string;
  /** `hub` or `portal`: an attendant and a customer may have the same id. */
  namespace: string;
  name: string;
}

/** The state of a thread, as `useThread()` returns it. */
export interface ThreadState {
  /** Whether the client is in the thread and receives its events. Fetch earlier messages once it is true. */
  joined: boolean;
  /** The reason why the server refused the thread, or removed the client from it. */
  refused: string | undefined;
  /** The other users who are typing, in the order in which they started. */
  typists: readonly Typist[];
}

const OUTSIDE: ThreadState = { joined: false, refused: undefined, typists: [] };

const threads = new WeakMap<Socket, Map<string, Thread>>();

/** A thread as one component uses it. */
export interface ThreadSource extends Source<ThreadState> {
  /** Call it with every key. */
  readonly sendTyping: () => void;
  /** Call it when a message was sent. */
  readonly stopTyping: () => void;
}

function nothing(): void {}

/** A thread that is entered, and in which the user can type, while its state is listened to; without an id, no thread. */
export function threadSource(socket: Socket, id: Id | null | undefined): ThreadSource {
  const initial = OUTSIDE;
  if (id === undefined || id === null) {
    return { initial, get: () => initial, listen: () => nothing, sendTyping: nothing, stopTyping: nothing };
  }
  socket.isIn(id); // throws if it is no id
  const threadId = String(id);
  const typing = new Typing(socket, threadId);
  // Typing stops before the thread is left.
  const listen = (changed: () => void): (() => void) => all(typing.begin(), entered(socket, threadId).use(changed));
  const get = (): ThreadState => threads.get(socket)?.get(threadId)?.state ?? OUTSIDE;
  return { initial, get, listen, sendTyping: () => typing.start(), stopTyping: () => typing.stop() };
}

/** The thread, which all its users on the page share. */
function entered(socket: Socket, threadId: string): Thread {
  const all = threads.get(socket) ?? new Map<string, Thread>();
  threads.set(socket, all);
  const thread = all.get(threadId) ?? new Thread(socket, threadId, () => all.delete(threadId));
  all.set(threadId, thread);
  return thread;
}

class Thread {
  state: ThreadState = OUTSIDE;
  readonly #users = new Set<() => void>();
  readonly #typists = new Map<string, { typist: Typist; expiry: ReturnType<typeof setTimeout> }>();
  readonly #undo: (() => void)[];
  #leave: () => void;
  #lingering: ReturnType<typeof setTimeout> | undefined;

  constructor(
    socket: Socket,
    threadId: string,
    private readonly over: () => void,
  ) {
    const room = `thread:${threadId}`;
    this.#leave = socket.join(threadId);
    this.#undo = [
      () => this.#leave(),
      socket.when("reset", () => {
        if (this.state.refused !== undefined) this.#leave = socket.join(threadId); // it was another user who was refused
        this.#become({ ...OUTSIDE, typists: this.#forget() });
      }),
      socket.when("joined", (joined) => {
        if (joined.room === room) this.#become({ joined: true, refused: undefined });
      }),
      socket.when("left", (left) => {
        if (left.room !== room) return;
        this.#become({ joined: false, refused: left.reason, typists: this.#forget() });
        if (this.#users.size === 0) this.#end();
      }),
      socket.when("status", (status) => {
        if (status !== "connected" && this.#typists.size > 0) this.#become({ typists: this.#forget() });
      }),
      socket.on("thread:typing", (data) => {
        // Outside, it is left over from before the thread was left and wanted again.
        if (data.thread_id === threadId && this.state.joined) this.#type(data);
      }),
    ];
    this.#become({ joined: socket.isIn(room) });
  }

  use(changed: () => void): () => void {
    clearTimeout(this.#lingering);
    this.#users.add(changed);
    return () => {
      this.#users.delete(changed);
      if (this.#users.size > 0) return;
      if (this.state.refused === undefined) this.#lingering = setTimeout(() => this.#end(), LINGER);
      else this.#end(); // the next user asks again
    };
  }

  #end(): void {
    clearTimeout(this.#lingering);
    for (const each of this.#undo) each();
    this.#forget();
    this.over();
  }

  #type({ user_id: userId, namespace, name, typing }: ServerEvents["thread:typing"]): void {
    const key = `${namespace} ${userId}`;
    const known = this.#typists.get(key);
    clearTimeout(known?.expiry);
    if (typing) {
      const expiry = setTimeout(() => this.#stop(key), TYPIST_EXPIRES);
      this.#typists.set(key, { typist: known?.typist ?? { userId, namespace, name }, expiry });
      if (known === undefined) this.#show();
    } else if (known !== undefined) {
      this.#stop(key);
    }
  }

  #stop(key: string): void {
    this.#typists.delete(key);
    this.#show();
  }

  #show(): void {
    this.#become({ typists: [...this.#typists.values()].map(({ typist }) => typist) });
  }

  #forget(): [] {
    for (const { expiry } of this.#typists.values()) clearTimeout(expiry);
    this.#typists.clear();
    return [];
  }

  #become(change: Partial<ThreadState>): void {
    this.state = { ...this.state, ...change };
    for (const changed of [...this.#users]) if (this.#users.has(changed)) changed(); // one may unmount another
  }
}
