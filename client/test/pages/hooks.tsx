/** The page of tests/e2e/hooks.py: every hook once, under StrictMode; `window` has the results. */

import { StrictMode, Suspense, use, useSyncExternalStore, type ReactNode } from "react";
import { createRoot, type Root } from "react-dom/client";
import type { Socket, SocketOptions } from "../../src/index.js";
import { SocketProvider, useGap, usePresence, useSocket, useSocketEvent, useThread } from "../../src/react.js";

/** The components that are mounted. */
interface View {
  threads: string[];
  /** The group whose members are listed. */
  group?: string;
  /** Suspended until `resume()`. */
  suspended?: boolean;
}

type Options = Omit<SocketOptions, "getToken"> & { tokens: string[] };

const listeners = new Set<() => void>();
let waiting: Promise<void> | undefined;
let root: Root | undefined;

const page = {
  view: { threads: [] } as View,
  seen: [] as string[],
  gaps: [] as string[],
  renders: 0,
  /** The number of calls of `getToken`. */
  asked: 0,
  socket: undefined as Socket | undefined,
  sendTyping: (): void => undefined,
  stopTyping: (): void => undefined,
  resume: (): void => undefined,

  mount(options: Options, view: View): void {
    page.view = view;
    const getToken = (): string => options.tokens[Math.min(page.asked++, options.tokens.length - 1)] ?? "";
    root = createRoot(document.getElementById("root") as HTMLElement);
    root.render(
      <StrictMode>
        <SocketProvider namespaces={{ hub: { ...options, getToken } }}>
          <App />
        </SocketProvider>
      </StrictMode>,
    );
  },
  show(view: View): void {
    page.view = view;
    for (const changed of listeners) changed();
  },
  unmount(): void {
    root?.unmount();
  },
};

function App(): ReactNode {
  const { threads, group, suspended } = useSyncExternalStore(
    (changed) => {
      listeners.add(changed);
      return () => listeners.delete(changed);
    },
    () => page.view,
  );
  return (
    <Suspense fallback={<p id="fallback">waiting</p>}>
      {threads.map((threadId) => (
        <Chat key={threadId} threadId={threadId} suspended={suspended ?? false} />
      ))}
      {group === undefined ? null : <People group={group} />}
    </Suspense>
  );
}

function Chat({ threadId, suspended }: { threadId: string; suspended: boolean }): ReactNode {
  page.renders += 1;
  const { socket, status, refusal } = useSocket("hub");
  const { typists, joined, refused, sendTyping, stopTyping } = useThread(socket, threadId);
  useSocketEvent(socket, "thread:message", ({ thread_id, message_id }) => {
    if (thread_id === threadId) page.seen.push(message_id);
  });
  useGap(socket, ({ room }) => page.gaps.push(room));
  Object.assign(page, { socket, sendTyping, stopTyping });
  if (suspended) {
    waiting ??= new Promise((resolve) => (page.resume = resolve));
    use(waiting);
  }
  return (
    <section id={`thread-${threadId}`}>
      <p className="status">{status}</p>
      <p className="refusal">{refusal?.message}</p>
      <p className="state">{refused ?? (joined ? "in" : "outside")}</p>
      <p className="typists">{typists.map((typist) => typist.name).join(", ")}</p>
    </section>
  );
}

function People({ group }: { group: string }): ReactNode {
  const members = usePresence(useSocket("hub").socket, group);
  return <p className="people">{members.map(({ name, status }) => `${name} ${status}`).join(", ")}</p>;
}

Object.assign(window, { page, loaded: true });
