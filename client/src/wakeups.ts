/** Callbacks for changes of the network, the page and the machine. */
export interface Moments {
  /** The page is active again: check the connection. */
  wake: () => void;
  /** The network is back. */
  online: () => void;
  /** There is no network, or the page enters the back-forward cache, which refuses pages with an open connection. */
  lose: () => void;
}

const TICK = 5_000;
/** Milliseconds by which a timer is late if its machine was asleep. */
const ASLEEP = 20_000;

/** Watches until the returned function is called. Outside a browser it only detects sleep: call `Socket.wake()` there. */
export function watch(moments: Moments): () => void {
  const end = new AbortController();
  const listen = (target: EventTarget | undefined, type: string, handler: (event: Event) => void): void =>
    target?.addEventListener?.(type, handler, end); // React Native has a window without it
  const { window: page, document: tab } = globalThis as Partial<typeof globalThis>;
  listen(page, "online", moments.online);
  listen(page, "offline", moments.lose);
  listen(page, "pageshow", moments.wake);
  listen(page, "pagehide", (event) => {
    if ((event as PageTransitionEvent).persisted) moments.lose();
  });
  listen(tab, "resume", moments.wake); // after the browser had frozen a hidden tab
  listen(tab, "visibilitychange", () => {
    if (tab?.visibilityState === "visible") moments.wake();
  });
  let last = Date.now();
  const clock = setInterval(() => {
    const now = Date.now();
    if (now - last > TICK + ASLEEP) moments.wake();
    last = now;
  }, TICK);
  return () => {
    clearInterval(clock);
    end.abort();
  };
}
