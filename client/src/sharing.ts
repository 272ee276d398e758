import { Socket, type SocketOptions, type Status } from "./socket.js";

/** A value that changes by itself, for a framework to show. */
export interface Source<T> {
  /** The value before a component is mounted, and on a server. */
  readonly initial: T;
  readonly get: () => T;
  /** Calls `changed` after every change, until the returned function is called. */
  readonly listen: (changed: () => void) => () => void;
}

/** Milliseconds before an unused connection is closed, because a change of pages uses it again at once. */
const LINGER = 1_000;

/** A socket that is connected while its status is listened to, and a second longer. */
export class SharedSocket {
  #users = 0;
  #lingering: ReturnType<typeof setTimeout> | undefined;
  readonly status: Source<Status>;

  constructor(readonly socket: Socket) {
    const listen = (changed: () => void): (() => void) => {
      const undo = [socket.when("status", changed), this.#use()];
      return () => undo.forEach((each) => each());
    };
    this.status = { initial: "stopped", get: () => socket.status, listen };
  }

  #use(): () => void {
    // Only the first user connects: a further component does not retry a refused or ended connection.
    if (this.#users === 0 && this.#lingering === undefined) this.socket.connect();
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

  constructor(private readonly namespaces: Namespaces) {}

  /** Throws an `Error` for a name that is not among the namespaces. */
  get(namespace: string): SharedSocket {
    let shared = this.#shared.get(namespace);
    if (shared === undefined) {
      shared = new SharedSocket(this.#made(this.#options(namespace)));
      this.#shared.set(namespace, shared);
    }
    return shared;
  }

  #made(options: Namespaces[string]): Socket {
    const WebSocket = options.WebSocket ?? globalThis.WebSocket ?? (NoWebSocket as unknown as typeof globalThis.WebSocket);
    return new Socket({ ...options, WebSocket, autoConnect: false });
  }

  #options(namespace: string): Namespaces[string] {
    const options = Object.hasOwn(this.namespaces, namespace) ? this.namespaces[namespace] : undefined;
    if (options !== undefined) return options;
    const known = Object.keys(this.namespaces).map((name) => JSON.stringify(name));
    throw new Error(`there is no namespace ${JSON.stringify(namespace)}; expected one of ${known.join(", ")}`);
  }
}
