/** What the pages of Vue and Svelte have in common: `window.page`, of tests/e2e/test_vue_svelte_browser.py. */

import type { Socket, SocketOptions } from "../../src/index.js";

/** The components that are mounted. */
export interface View {
  /** One component for each place in the list, whose thread may change. */
  threads: string[];
  /** The group whose members are listed. */
  group?: string;
}

/** An application that is mounted. */
export interface Application {
  show: (view: View) => void;
  unmount: () => unknown;
}

type Options = Omit<SocketOptions, "getToken"> & { tokens: string[] };
type Mount = (target: Element, options: Omit<SocketOptions, "autoConnect">, view: View) => Application;

/** What the components report. */
export const page = {
  seen: [] as string[],
  socket: undefined as Socket | undefined,
  sendTyping: (): void => undefined,
  stopTyping: (): void => undefined,
};

/** Makes an application the page's. */
export function present(mount: Mount): void {
  let application: Application | undefined;
  Object.assign(page, {
    mount({ tokens, ...options }: Options, view: View): void {
      const target = document.getElementById("root") as HTMLElement;
      application = mount(target, { ...options, getToken: () => tokens[0] ?? "" }, view);
    },
    show: (view: View): void => application?.show(view),
    unmount: (): unknown => application?.unmount(),
  });
  Object.assign(window, { page, loaded: true });
}
