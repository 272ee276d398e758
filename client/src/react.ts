"use client";

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useLayoutEffect,
  useRef,
  useState,
  useSyncExternalStore,
  type ReactNode,
} from "react";
import type { ServerEvents } from "./events.js";
import type { Handler } from "./emitter.js";
import type { Gap } from "./gaps.js";
import { Socket, type SocketOptions, type Status } from "./socket.js";

/** Milliseconds that a connection outlives the last component that used it: StrictMode and page changes come back. */
const LINGER = 1_000;
/** Milliseconds between two `typing:start` while somebody types. */
const TYPING_EVERY = 4_000;
/** Milliseconds after which somebody who did not type any more has stopped. */
const TYPING_ENDS = 5_000;
/** Milliseconds after which a typist is forgotten: a process that was killed reports nothing. */
const TYPIST_EXPIRES = 12_000;

/** A socket that is connected while somebody uses it. */
class Shared {
  #users = 0;
  #lingering: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly socket: Socket) {}

  use(): () => void {
    clearTimeout(this.#lingering);
    this.#users += 1;
    this.socket.connect();
    return () => {
      this.#users -= 1;
      if (this.#users === 0) this.#lingering = setTimeout(() => this.socket.disconnect(), LINGER);
    };
  }
}

export type Namespaces = Record<string, Omit<SocketOptions, "autoConnect">>;

class Registry {
  readonly #shared = new Map<string, Shared>();

  constructor(private readonly namespaces: Namespaces) {}

  get(namespace: string): Shared {
    let shared = this.#shared.get(namespace);
    if (shared === undefined) {
      const options = this.namespaces[namespace];
      if (options === undefined) throw new Error(`SocketProvider knows no namespace ${JSON.stringify(namespace)}`);
      shared = new Shared(new Socket({ ...options, autoConnect: false }));
      this.#shared.set(namespace, shared);
    }
    return shared;
  }
}

const Context = createContext<Registry | undefined>(undefined);

/** Says where each namespace is and who comes. The first value counts: a new user needs a new `key`. */
export function SocketProvider({ namespaces, children }: { namespaces: Namespaces; children?: ReactNode }): ReactNode {
  const [registry] = useState(() => new Registry(namespaces));
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

// useLayoutEffect warns on a server, where effects do not run anyway.
const useBeforeEffects = typeof window === "undefined" ? useEffect : useLayoutEffect;

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

export interface Typist {
  userId: string;
  name: string;
}

/**
 * In a thread while mounted: who types there, and how to say that one does oneself. Once `joined`, nothing is missed
 * without a gap being said: fetch what you show of the thread then, not before.
 */
export function useThread(
  socket: Socket,
  threadId: string,
): { joined: boolean; typists: readonly Typist[]; sendTyping: () => void; stopTyping: () => void } {
  const joined = useSyncExternalStore(
    useCallback(
      (changed: () => void) => {
        const undo = [socket.when("joined", changed), socket.when("left", changed)];
        return () => undo.forEach((each) => each());
      },
      [socket],
    ),
    () => socket.isIn(threadId),
    () => false,
  );
  const [typists, setTypists] = useState<readonly Typist[]>([]);
  const typing = useRef({ since: 0, ends: undefined as ReturnType<typeof setTimeout> | undefined });

  useEffect(() => {
    const expiry = new Map<string, ReturnType<typeof setTimeout>>();
    const forget = (userId: string): void => {
      clearTimeout(expiry.get(userId));
      expiry.delete(userId);
      setTypists((known) => known.filter((each) => each.userId !== userId));
    };
    const leave = socket.join(threadId);
    const off = socket.on("thread:typing", (data) => {
      if (data.thread_id !== threadId) return;
      forget(data.user_id);
      if (!data.typing) return;
      expiry.set(data.user_id, setTimeout(() => forget(data.user_id), TYPIST_EXPIRES));
      setTypists((known) => [...known, { userId: data.user_id, name: data.name }]);
    });
    const offStatus = socket.when("status", (status) => {
      if (status !== "connected") for (const userId of [...expiry.keys()]) forget(userId);
    });
    return () => {
      off();
      offStatus();
      leave();
      for (const timer of expiry.values()) clearTimeout(timer);
      setTypists([]);
    };
  }, [socket, threadId]);

  const stopTyping = useCallback(() => {
    clearTimeout(typing.current.ends);
    if (typing.current.since === 0) return;
    typing.current.since = 0;
    socket.emit("typing:stop", { thread_id: threadId });
  }, [socket, threadId]);

  const sendTyping = useCallback(() => {
    const now = Date.now();
    if (now - typing.current.since >= TYPING_EVERY) {
      typing.current.since = now;
      socket.emit("typing:start", { thread_id: threadId });
    }
    clearTimeout(typing.current.ends);
    typing.current.ends = setTimeout(stopTyping, TYPING_ENDS);
  }, [socket, threadId, stopTyping]);

  useEffect(() => stopTyping, [stopTyping]);
  return { joined, typists, sendTyping, stopTyping };
}

export type Member = ServerEvents["presence:state"]["members"][number];

/** Who is present in a group: what the server said when we came, and every change since, in order. */
export function usePresence(socket: Socket, group: string): readonly Member[] {
  const [members, setMembers] = useState<readonly Member[]>([]);
  useEffect(() => {
    const room = `presence:${group}`;
    const change: Handler<Member> = (member, where) => {
      if (where.room !== room) return;
      setMembers((known) => {
        const others = known.filter((each) => each.user_id !== member.user_id);
        return member.status === "offline" ? others : [...others, member].sort(byName);
      });
    };
    const undo = [
      socket.on("presence:state", (state) => {
        if (state.group === group) setMembers(state.members);
      }),
      socket.on("attendant:online", change),
      socket.on("attendant:away", change),
      socket.on("attendant:offline", change),
    ];
    return () => undo.forEach((each) => each());
  }, [socket, group]);
  return members;
}

function byName(a: Member, b: Member): number {
  return a.name.localeCompare(b.name) || a.user_id.localeCompare(b.user_id);
}
