import { computed, inject, markRaw, onMounted, provide, shallowRef, toValue, watch } from "vue";
import type { ComputedRef, InjectionKey, MaybeRefOrGetter, ShallowRef } from "vue";
import type { Id } from "./ids.js";
import type { Member } from "./presence.js";
import { Sockets, presenceSource, type Namespaces, type SocketState, type Source, type User } from "./sharing.js";
import type { Socket } from "./socket.js";
import { threadSource, type Typist } from "./thread.js";

export type { Member } from "./presence.js";
export type { Namespaces, User } from "./sharing.js";
export type { Typist } from "./thread.js";

const KEY: InjectionKey<Sockets> = Symbol("realtime-sockets");

/**
 * Provides one socket for each namespace to the components below the one whose `setup()` calls it.
 *
 * @param namespaces The options of each namespace, as of `new Socket()`, without `autoConnect`.
 * @param user The id of the user who is logged in, or null; or a ref or getter of it. When it changes, every socket discards
 * everything of the last user and connects with a token of the new one; with null it does not connect.
 * @example
 * provideSockets({ hub: { url: "wss://example.com/hub/", getToken } }, () => user.id);
 */
export function provideSockets(namespaces: Namespaces, user?: MaybeRefOrGetter<User>): void {
  const sockets = new Sockets(namespaces, toValue(user));
  watch(() => toValue(user), (latest) => sockets.change(latest), { flush: "sync" });
  provide(KEY, sockets);
}

/** The current value of the latest source, from mounting to unmounting. */
function useSource<T>(source: () => Source<T>): Readonly<ShallowRef<T>> {
  const value = shallowRef(source().initial);
  // Not earlier, so that a server opens no connection, and the first render is the same at hydration.
  onMounted(() => {
    watch(source, ({ get, listen }, _, onCleanup) => {
      const show = (): T => (value.value = get());
      onCleanup(listen(show));
      show();
    }, { immediate: true });
  });
  return value;
}

/**
 * The one connection to a namespace, which all components share. It is open while a component that uses it is mounted, and
 * a second longer.
 *
 * @param namespace A key of the `namespaces` of `provideSockets()`; throws an `Error` for any other.
 * @returns The socket, and refs of its state: `connected`, `status`, and the `refusal` of the last attempt.
 * @example
 * const { socket, connected, status, refusal } = useSocket("hub");
 * onScopeDispose(socket.on("thread:message", ({ message_id }) => console.log(message_id)));
 */
export function useSocket(
  namespace: string,
): { socket: Socket } & { [Name in keyof SocketState]: ComputedRef<SocketState[Name]> } {
  const sockets = inject(KEY, undefined);
  if (sockets === undefined) throw new Error("useSocket() needs provideSockets() in a component above");
  const shared = sockets.get(namespace);
  const state = useSource(() => shared.state);
  return {
    socket: markRaw(shared.socket), // a reactive proxy would not work, because its fields are private
    connected: computed(() => state.value.connected),
    status: computed(() => state.value.status),
    refusal: computed(() => state.value.refusal),
  };
}

/**
 * Keeps the client in a thread while the component is mounted, and a second longer. Any number of components may do so.
 *
 * @param socket The socket of `useSocket()`.
 * @param threadId The thread's id, or a ref or getter of one; undefined or null: no thread.
 * @returns The state of the thread (`joined`, `refused`, `typists`) as refs; `sendTyping`, to be called with every key; and
 * `stopTyping`, to be called when a message was sent. After `refused` a component that is mounted later asks again.
 * @example
 * const { joined, refused, typists, sendTyping, stopTyping } = useThread(socket, () => "42");
 */
export function useThread(
  socket: Socket,
  threadId: MaybeRefOrGetter<Id | null | undefined>,
): {
  joined: ComputedRef<boolean>;
  refused: ComputedRef<string | undefined>;
  typists: ComputedRef<readonly Typist[]>;
  sendTyping: () => void;
  stopTyping: () => void;
} {
  const thread = computed(() => threadSource(socket, toValue(threadId)));
  const state = useSource(() => thread.value);
  return {
    joined: computed(() => state.value.joined),
    refused: computed(() => state.value.refused),
    typists: computed(() => state.value.typists),
    sendTyping: () => thread.value.sendTyping(),
    stopTyping: () => thread.value.stopTyping(),
  };
}

/**
 * The present users of a group, sorted by name. The socket keeps the list, so a component that is mounted later gets it, too.
 *
 * @param group The group's name, or a ref or getter of it; undefined or null: none.
 * @example
 * const members = usePresence(socket, "attendants");
 */
export function usePresence(
  socket: Socket,
  group: MaybeRefOrGetter<Id | null | undefined>,
): Readonly<ShallowRef<readonly Member[]>> {
  return useSource(() => presenceSource(socket, toValue(group)));
}
