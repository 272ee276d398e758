// From the index, so that CommonJS needs one module for the core.
import { Socket, type Id, type Member, type Refusal, type SocketOptions, type Status } from "./index.js";

/** A value that changes by itself, for a framework to show. */
export interface Source<T> {
  /** The value before a component is mounted, and on a server. */
  readonly initial: T;
  /** The value now: the same object until it changes. */
  readonly get: () => T;
  /** Calls `changed` after every change, until the returned function is called. */
  readonly listen: (changed: () => void) => () => void;
}

/** A function that calls all of these. */
export function all(...each: (() => unknown)[]): () => void {
  return () => each.forEach((call) => call());
}

/** What `useSocket()` shows of a socket. */
export interface SocketState {
  connected: boolean;
  status: Status;
  /** Why the last attempt was refused, until there is a connection. */
  refusal: Refusal | undefined;
}

/** The id of the user who is logged in, or null; undefined if the page does not say. */
export type User = Id | null | undefined;

/** Milliseconds before an unused connection is closed, because StrictMode and page changes use it again at once. */
const LINGER = 1_000;

/** A socket that is connected while its state is listened to, and a second longer. */
export class SharedSocket {
  readonly state: Source<SocketState>;
  #last: SocketState = { connected: false, status: "stopped", refusal: undefined };
  #users = 0;
  #lingering: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly socket: Socket,
    private isLoggedIn: boolean,
  ) {
    const listen = (changed: () => void): (() => void) => all(this.watch(changed), this.#use());
    this.state = { initial: this.#last, get: () => this.#state(), listen };
  }

  /** Calls `changed` after every change of the state, until the returned function is called; does not connect. */
  watch(changed: () => void): () => void {
    return all(this.socket.when("status", changed), this.socket.when("refused", changed));
  }

  /** Connects as another user, if the socket is used, or as none. */
  change(isLoggedIn: boolean): void {
    this.isLoggedIn = isLoggedIn;
    clearTimeout(this.#lingering);
    this.#lingering = undefined; // so that the next user of the socket connects it
    this.socket.disconnect();
    if (isLoggedIn && this.#users > 0) this.socket.connect();
  }

  #state(): SocketState {
    const { status, refusal } = this.socket;
    if (status !== this.#last.status || refusal !== this.#last.refusal) {
      this.#last = { connected: status === "connected", status, refusal };
    }
    return this.#last;
  }

  #use(): () => void {
    // Only the first user connects: a further component does not retry a refused or ended connection.
    if (this.#users === 0 && this.#lingering === undefined && this.isLoggedIn) this.socket.connect();
    clearTimeout(this.#lingering);
    this.#lingering = undefined;
    this.#users += 1;
    return () => {
      this.#users -= 1;
      if (this.#users > 0) return;
      this.#lingering = setTimeout(() => {
        this.#lingering = undefined;
        this.socket.disconnect();
      }, LINGER);
    };
  }
}

const NO_MEMBERS: readonly Member[] = [];

/** The present users of a group, as the socket keeps them; without a group, none. */
export function presenceSource(socket: Socket, group: Id | null | undefined): Source<readonly Member[]> {
  const get = (): readonly Member[] => (group === undefined || group === null ? NO_MEMBERS : socket.presence(group));
  return { initial: NO_MEMBERS, get, listen: (changed) => socket.when("presence", changed) };
}

/** The options of the socket of each namespace, by the namespace's name. */
export type Namespaces = Record<string, Omit<SocketOptions, "autoConnect">>;

/** In the place of a `WebSocket` where components are only rendered: a server may have none, and does not connect. */
class NoWebSocket {
  constructor() {
    throw new TypeError("WebSocket: there is none on this platform");
  }
}

/** One socket for each namespace, made when it is first asked for. */
export class Sockets {
  readonly #shared = new Map<string, SharedSocket>();

  constructor(
    private namespaces: Namespaces,
    private user?: User,
  ) {}

  /** Takes the latest `getToken` of each namespace; the other options remain those with which its socket was made. */
  update(namespaces: Namespaces): void {
    this.namespaces = namespaces;
  }

  /** Lets every socket discard everything of the last user, and connect for this one; with null it does not connect. */
  change(user: User): void {
    if (user === this.user) return;
    this.user = user;
    for (const shared of this.#shared.values()) shared.change(user !== null);
  }

  /** Throws an `Error` for a name that is not among the namespaces. */
  get(namespace: string): SharedSocket {
    let shared = this.#shared.get(namespace);
    if (shared === undefined) {
      shared = new SharedSocket(this.#made(namespace, this.#options(namespace)), this.user !== null);
      this.#shared.set(namespace, shared);
    }
    return shared;
  }

  #made(namespace: string, options: Namespaces[string]): Socket {
    const { getToken } = options;
    const latest = (): string | Promise<string> => (this.namespaces[namespace] ?? options).getToken();
    return new Socket({
      ...options,
      getToken: typeof getToken === "function" ? latest : getToken,
      WebSocket: options.WebSocket ?? globalThis.WebSocket ?? (NoWebSocket as unknown as SocketOptions["WebSocket"]),
      autoConnect: false,
    });
  }

  #options(namespace: string): Namespaces[string] {
    const options = Object.hasOwn(this.namespaces, namespace) ? this.namespaces[namespace] : undefined;
    if (options !== undefined) return options;
    const known = Object.keys(this.namespaces).map((name) => JSON.stringify(name));
    throw new Error(`there is no namespace ${JSON.stringify(namespace)}; expected one of ${known.join(", ")}`);
  }
}
