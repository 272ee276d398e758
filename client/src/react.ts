"use client";

import {
  createContext,
  createElement,
  useContext,
  useEffect,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
  useSyncExternalStore,
  type ReactElement,
  type ReactNode,
} from "react";
import type { ServerEvents } from "./events.js";
import type { Handler } from "./emitter.js";
import type { Gap } from "./reports.js";
import type { Id } from "./ids.js";
import type { Member } from "./presence.js";
import { Sockets, presenceSource, type Namespaces, type SocketState, type Source, type User } from "./sharing.js";
import type { Socket } from "./socket.js";
import { threadSource, type ThreadState } from "./thread.js";

export type { Member } from "./presence.js";
export type { Namespaces, SocketState } from "./sharing.js";
export type { ThreadState, Typist } from "./thread.js";

// useLayoutEffect warns on a server, where effects do not run anyway.
const useBeforeEffects = typeof window === "undefined" ? useEffect : useLayoutEffect;

const Context = createContext<Sockets | undefined>(undefined);

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
}): ReactElement {
  const [sockets] = useState(() => new Sockets(namespaces, user));
  useBeforeEffects(() => {
    sockets.update(namespaces);
    sockets.change(user);
  });
  return createElement(Context.Provider, { value: sockets }, children);
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
export function useSocket(namespace: string): SocketState & { socket: Socket } {
  const sockets = useContext(Context);
  if (sockets === undefined) throw new Error("useSocket() needs a <SocketProvider> around it");
  const { socket, state } = sockets.get(namespace);
  return { socket, ...useSource(state) };
}

/** The current value of a source, which is listened to while the component is mounted. */
function useSource<T>({ initial, get, listen }: Source<T>): T {
  return useSyncExternalStore(listen, get, () => initial);
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
  const thread = useMemo(() => threadSource(socket, threadId), [socket, threadId]);
  return { ...useSource(thread), sendTyping: thread.sendTyping, stopTyping: thread.stopTyping };
}

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
  return useSource(useMemo(() => presenceSource(socket, group), [socket, group]));
}
