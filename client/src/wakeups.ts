/** What changes of the network, the page and the machine ask of a connection. */
interface Connection {
  /** The page is active again: check the connection. */
  wake(): void;
  /** The network is back: replace the connection, without a long wait, because it was not the server's fault. */
  reconnect(): void;
  /**
   * There is no network, or the page enters the back-forward cache, which refuses pages with an open connection. Some
   * browsers never report that they are online again: retry anyway.
   */
  lose(): void;
}

const TICK = 5_000;
/** Milliseconds by which a timer is late if its machine was asleep. */
const ASLEEP = 20_000;

/** Watches until the returned function is called. Outside a browser it only detects sleep: call `Socket.wake()` there. */
export function watch(connection: Connection): () => void {
  const end = new AbortController();
  const listen = (target: EventTarget | undefined, type: string, handler: (event: Event) => void): void =>
    target?.addEventListener?.(type, handler, end); // React Native has a window without it
  const { window: page, document: tab } = globalThis as Partial<typeof globalThis>;
  const wake = (): void => connection.wake();
  listen(page, "online", () => connection.reconnect());
  listen(page, "offline", () => connection.lose());
  listen(page, "pageshow", wake);
  listen(page, "pagehide", (event) => {
    if ((event as PageTransitionEvent).persisted) connection.lose();
  });
  listen(tab, "resume", wake); // after the browser had frozen a hidden tab
  listen(tab, "visibilitychange", () => {
    if (!tab?.hidden) wake();
  });
  let last = Date.now();
  const clock = setInterval(() => {
    if (Date.now() - last > TICK + ASLEEP) wake();
    last = Date.now();
  }, TICK);
  return () => {
    clearInterval(clock);
    end.abort();
  };
}
