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
import { NOBODY, type Member } from "./presence.js";
import { Socket, type SocketOptions, type Status } from "./socket.js";
import { OUTSIDE, enterThread, threadState, type ThreadState } from "./thread.js";
import { Typing } from "./typing.js";

export type { Member } from "./presence.js";
export type { ThreadState, Typist } from "./thread.js";

// useLayoutEffect warns on a server, where effects do not run anyway.
const useBeforeEffects = typeof window === "undefined" ? useEffect : useLayoutEffect;

/** Milliseconds that a connection outlives the last component that used it: StrictMode and page changes come back. */
const LINGER = 1_000;

/** A socket that is connected while somebody uses it. */
class Shared {
  #users = 0;
  #lingering: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly socket: Socket) {}

  use(): () => void {
    // Only the first one connects: a further component changes nothing about a server that said no, or a page that left.
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

export type Namespaces = Record<string, Omit<SocketOptions, "autoConnect">>;

class Registry {
  readonly #shared = new Map<string, Shared>();

  constructor(public namespaces: Namespaces) {}

  get(namespace: string): Shared {
    let shared = this.#shared.get(namespace);
    if (shared === undefined) {
      const options = Object.hasOwn(this.namespaces, namespace) ? this.namespaces[namespace] : undefined;
      if (options === undefined) {
        const known = Object.keys(this.namespaces).map((name) => JSON.stringify(name));
        throw new Error(`SocketProvider knows no namespace ${JSON.stringify(namespace)}, but ${known.join(", ")}`);
      }
      const getToken = (): string | Promise<string> => (this.namespaces[namespace] ?? options).getToken();
      shared = new Shared(new Socket({ ...options, getToken, autoConnect: false }));
      this.#shared.set(namespace, shared);
    }
    return shared;
  }
}

const Context = createContext<Registry | undefined>(undefined);

/**
 * Says where each namespace is and who comes. Of `getToken` the latest counts, of the rest the first: a new user, or another
 * address, needs a new `key`.
 */
export function SocketProvider({ namespaces, children }: { namespaces: Namespaces; children?: ReactNode }): ReactNode {
  const [registry] = useState(() => new Registry(namespaces));
  useBeforeEffects(() => {
    registry.namespaces = namespaces;
  });
  return createElement(Context.Provider, { value: registry }, children);
}

/** The one connection to a namespace, shared by all components, connected while any of them is mounted. */
export function useSocket(namespace: string): { socket: Socket; connected: boolean; status: Status } {
  const registry = useContext(Context);
  if (registry === undefined) throw new Error("useSocket() needs a <SocketProvider> around it");
  const shared = registry.get(namespace);
  const { socket } = shared;
  useEffect(() => shared.use(), [shared]);
  const status = useSyncExternalStore(
    useCallback((changed: () => void) => socket.when("status", changed), [socket]),
    () => socket.status,
    () => "stopped" as Status,
  );
  return { socket, connected: status === "connected", status };
}

/** Always the latest of what is passed in, without being a dependency. */
function useLatest<T>(value: T): { readonly current: T } {
  const latest = useRef(value);
  useBeforeEffects(() => {
    latest.current = value;
  });
  return latest;
}

/** Calls the latest `handler` for every such event, exactly once, without rendering. */
export function useSocketEvent<Name extends keyof ServerEvents>(
  socket: Socket,
  name: Name,
  handler: Handler<ServerEvents[Name]>,
): void {
  const latest = useLatest(handler);
  useEffect(() => socket.on(name, (data, where) => latest.current(data, where)), [socket, name, latest]);
}

/** Calls the latest `handler` whenever something may have been missed: fetch it anew. */
export function useGap(socket: Socket, handler: (gap: Gap) => void): void {
  const latest = useLatest(handler);
  useEffect(() => socket.when("gap", (gap) => latest.current(gap)), [socket, latest]);
}

/**
 * In a thread while mounted. `joined`: what is published there comes from now on, so fetch what was there before. `refused`:
 * why one may not be in it (any more); to ask again mount it anew. `typists`: who else types there. `sendTyping` may be called
 * with every key; `stopTyping` when the message was sent.
 */
export function useThread(
  socket: Socket,
  threadId: string,
): ThreadState & { sendTyping: () => void; stopTyping: () => void } {
  const typing = useMemo(() => new Typing(socket, threadId), [socket, threadId]);
  // Before the next one, so that one stops typing before one leaves.
  useEffect(() => typing.begin(), [typing]);
  const state = useSyncExternalStore(
    useCallback((changed: () => void) => enterThread(socket, threadId, changed), [socket, threadId]),
    () => threadState(socket, threadId),
    () => OUTSIDE,
  );
  const sendTyping = useCallback(() => typing.start(), [typing]);
  const stopTyping = useCallback(() => typing.stop(), [typing]);
  return { ...state, sendTyping, stopTyping };
}

/**
 * Who is present in a group, in the order of their names. Kept with the connection: whoever is mounted later sees the same.
 * While there is no connection it is what was known last.
 */
export function usePresence(socket: Socket, group: string): readonly Member[] {
  return useSyncExternalStore(
    useCallback(
      (changed: () => void) =>
        socket.when("presence", (presence) => {
          if (presence.group === group) changed();
        }),
      [socket, group],
    ),
    () => socket.presence(group),
    () => NOBODY,
  );
}
