"use client";

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
  type ReactNode,
} from "react";
import type { ServerEvents } from "./events.js";
import type { Handler } from "./emitter.js";
import type { Gap } from "./gaps.js";
import { idOf, nameOf, type Id } from "./ids.js";
import { NO_MEMBERS, type Member } from "./presence.js";
import { Socket, type SocketOptions, type Status } from "./socket.js";
import { OUTSIDE, enterThread, threadState, type ThreadState } from "./thread.js";
import { Typing } from "./typing.js";
import type { Refusal } from "./verdict.js";

export type { Member } from "./presence.js";
export type { ThreadState, Typist } from "./thread.js";

// useLayoutEffect warns on a server, where effects do not run anyway.
const useBeforeEffects = typeof window === "undefined" ? useEffect : useLayoutEffect;

/** Milliseconds before an unused connection is closed, because StrictMode and page changes use it again at once. */
const LINGER = 1_000;

/** A socket that is connected while a component uses it. */
class Shared {
  #users = 0;
  #lingering: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly socket: Socket,
    private isLoggedIn: boolean,
  ) {}

  use(): () => void {
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

  /** Connects as another user, if a component uses the socket, or as none. */
  change(isLoggedIn: boolean): void {
    this.isLoggedIn = isLoggedIn;
    this.socket.disconnect();
    if (isLoggedIn && this.#users > 0) this.socket.connect();
  }
}

/** The options of the socket of each namespace, by the namespace's name. */
export type Namespaces = Record<string, Omit<SocketOptions, "autoConnect">>;

/** The id of the user who is logged in, or null; undefined if the page does not say. */
type User = Id | null | undefined;

/** In the place of a `WebSocket` where the page is only rendered. */
class NoWebSocket {
  constructor() {
    throw new TypeError("WebSocket: there is none on this platform");
  }
}

class Registry {
  readonly #shared = new Map<string, Shared>();

  constructor(
    private namespaces: Namespaces,
    private user: User,
  ) {}

  /** Takes the props of another render. */
  update(namespaces: Namespaces, user: User): void {
    this.namespaces = namespaces;
    if (user === this.user) return;
    this.user = user;
    for (const shared of this.#shared.values()) shared.change(user !== null);
  }

  get(namespace: string): Shared {
    let shared = this.#shared.get(namespace);
    if (shared === undefined) {
      const options = Object.hasOwn(this.namespaces, namespace) ? this.namespaces[namespace] : undefined;
      if (options === undefined) {
        const known = Object.keys(this.namespaces).map((name) => JSON.stringify(name));
        throw new Error(`SocketProvider has no namespace ${JSON.stringify(namespace)}; expected one of ${known.join(", ")}`);
      }
      shared = new Shared(this.#made(namespace, options), this.user !== null);
      this.#shared.set(namespace, shared);
    }
    return shared;
  }

  #made(namespace: string, options: Omit<SocketOptions, "autoConnect">): Socket {
    const { getToken } = options;
    const latest = (): string | Promise<string> => (this.namespaces[namespace] ?? options).getToken();
    return new Socket({
      ...options,
      getToken: typeof getToken === "function" ? latest : getToken,
      // A server that renders the page may have none, and does not connect.
      WebSocket: options.WebSocket ?? globalThis.WebSocket ?? (NoWebSocket as unknown as SocketOptions["WebSocket"]),
      autoConnect: false,
    });
  }
}

const Context = createContext<Registry | undefined>(undefined);

/**
 * Provides one socket for each namespace to the components below. It uses the latest `getToken`, and all other options of
 * the first render: pass another `key` for another URL.
 *
 * @param props.namespaces The options of each namespace, as of `new Socket()`, without `autoConnect`.
 * @param props.user The id of the user who is logged in, or null. When it changes, every socket discards everything of the
 * last user and connects with a token of the new one; with null it does not connect.
 * @example
 * <SocketProvider user={user.id} namespaces={{ hub: { url: "wss://example.com/hub/", getToken } }}>…</SocketProvider>
 */
export function SocketProvider({
  namespaces,
  user,
  children,
}: {
  namespaces: Namespaces;
  user?: User;
  children?: ReactNode;
}): ReactNode {
  const [registry] = useState(() => new Registry(namespaces, user));
  useBeforeEffects(() => registry.update(namespaces, user));
  return createElement(Context.Provider, { value: registry }, children);
}

/**
 * The one connection to a namespace, which all components share. It is open while a component uses it, and a second longer.
 * The component renders when the status changes, or an attempt is refused.
 *
 * @param namespace A key of the `namespaces` of the `SocketProvider`; throws an `Error` for any other.
 * @returns The socket, whether it is `connected`, its `status`, and the `refusal` of its last attempt.
 * @example
 * const { socket, connected, status } = useSocket("hub");
 */
export function useSocket(namespace: string): {
  socket: Socket;
  connected: boolean;
  status: Status;
  refusal: Refusal | undefined;
} {
  const registry = useContext(Context);
  if (registry === undefined) throw new Error("useSocket() needs a <SocketProvider> around it");
  const shared = registry.get(namespace);
  const { socket } = shared;
  useEffect(() => shared.use(), [shared]);
  const subscribe = useCallback(
    (changed: () => void) => {
      const undo = [socket.when("status", changed), socket.when("refused", changed)];
      return () => undo.forEach((each) => each());
    },
    [socket],
  );
  const status = useSyncExternalStore(subscribe, () => socket.status, () => "stopped" as Status);
  const refusal = useSyncExternalStore(subscribe, () => socket.refusal, () => undefined);
  return { socket, connected: status === "connected", status, refusal };
}

/** Always the latest value, without being a dependency. */
function useLatest<T>(value: T): { readonly current: T } {
  const latest = useRef(value);
  useBeforeEffects(() => {
    latest.current = value;
  });
  return latest;
}

/**
 * Calls the latest `handler` for every event of that name, exactly once, without rendering.
 *
 * @param socket The socket of `useSocket()`.
 * @param name An event of the server.
 * @param handler Gets the event's data, and the room and offset if it was published in a room.
 * @example
 * useSocketEvent(socket, "thread:message", ({ message_id }, { room }) => console.log(room, message_id));
 */
export function useSocketEvent<Name extends keyof ServerEvents>(
  socket: Socket,
  name: Name,
  handler: Handler<ServerEvents[Name]>,
): void {
  const latest = useLatest(handler);
  useEffect(() => socket.on(name, (data, where) => latest.current(data, where)), [socket, name, latest]);
}

/**
 * Calls the latest `handler` for every room in which publications may have been missed: refetch its data.
 *
 * @param socket The socket of `useSocket()`.
 * @param handler Gets the room and the reason.
 * @example
 * useGap(socket, ({ room }) => refetch(room));
 */
export function useGap(socket: Socket, handler: (gap: Gap) => void): void {
  const latest = useLatest(handler);
  useEffect(() => socket.when("gap", (gap) => latest.current(gap)), [socket, latest]);
}

/**
 * Keeps the client in a thread while the component is mounted, and a second longer. Any number of components may do so.
 *
 * @param socket The socket of `useSocket()`.
 * @param threadId The thread's id; undefined or null: none yet, so nothing is joined.
 * @returns The state of the thread (`joined`, `refused`, `typists`); `sendTyping`, to be called with every key; and
 * `stopTyping`, to be called when a message was sent. After `refused` a component that is mounted later asks again.
 * @example
 * const { joined, refused, typists, sendTyping, stopTyping } = useThread(socket, "42");
 */
export function useThread(
  socket: Socket,
  threadId: Id | null | undefined,
): ThreadState & { sendTyping: () => void; stopTyping: () => void } {
  const id = threadId === undefined || threadId === null ? undefined : idOf(threadId);
  const typing = useMemo(() => (id === undefined ? undefined : new Typing(socket, id)), [socket, id]);
  // Before the next effect, so that typing stops before the thread is left.
  useEffect(() => typing?.begin(), [typing]);
  const state = useSyncExternalStore(
    useCallback((changed: () => void) => (id === undefined ? nothing : enterThread(socket, id, changed)), [socket, id]),
    () => (id === undefined ? OUTSIDE : threadState(socket, id)),
    () => OUTSIDE,
  );
  const sendTyping = useCallback(() => typing?.start(), [typing]);
  const stopTyping = useCallback(() => typing?.stop(), [typing]);
  return { ...state, sendTyping, stopTyping };
}

function nothing(): void {}

/**
 * The present users of a group, sorted by name. The socket keeps the list, so a component that is mounted later gets it, too.
 * Without a connection it is the last known list.
 *
 * @param socket The socket of `useSocket()`.
 * @param group The group's name; undefined or null: none yet, so the list is empty.
 * @example
 * const members = usePresence(socket, "attendants");
 */
export function usePresence(socket: Socket, group: Id | null | undefined): readonly Member[] {
  const name = group === undefined || group === null ? undefined : nameOf(group);
  return useSyncExternalStore(
    useCallback(
      (changed: () => void) =>
        socket.when("presence", (presence) => {
          if (presence.group === name) changed();
        }),
      [socket, name],
    ),
    () => (name === undefined ? NO_MEMBERS : socket.presence(name)),
    () => NO_MEMBERS,
  );
}
