/** What the page notices about the network, itself and time. */
export interface Moments {
  /** The page is there again: look whether the connection is. */
  wake: () => void;
  /** The network is there again. */
  online: () => void;
  /** The browser says that there is no network. */
  offline: () => void;
  /** The page is put away whole (bfcache): with an open connection it would not be. */
  freeze: () => void;
}

const TICK = 5_000;
/** A timer that is so late was asleep with its machine. */
const ASLEEP = 20_000;

/** Watches until the function that is returned is called. Does nothing outside a browser, but for sleep. */
export function watch(moments: Moments): () => void {
  const undo: (() => void)[] = [];
  const listen = (target: EventTarget | undefined, type: string, handler: (event: Event) => void): void => {
    target?.addEventListener(type, handler);
    undo.push(() => target?.removeEventListener(type, handler));
  };
  const page = typeof window === "undefined" ? undefined : window;
  const tab = typeof document === "undefined" ? undefined : document;
  listen(page, "online", moments.online);
  listen(page, "offline", moments.offline);
  listen(page, "pageshow", moments.wake);
  listen(page, "pagehide", (event) => {
    if ((event as PageTransitionEvent).persisted) moments.freeze();
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
  undo.push(() => clearInterval(clock));
  return () => undo.forEach((each) => each());
}
