/** Rendering on a server opens no connection, and shows what the first render in a browser shows. */

import { afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { createSSRApp, defineComponent, h, type VNode } from "vue";
import { renderToString } from "vue/server-renderer";
import { provideSockets, usePresence, useSocket, useThread } from "../src/vue.js";
import { bundled } from "./bundle.js";
import { FakeWebSocket } from "./fake.js";

const namespaces = { hub: { url: "ws://server/hub/", getToken: vi.fn(() => "token") } };

beforeEach(() => {
  vi.useFakeTimers();
  FakeWebSocket.reset();
});

afterEach(async () => {
  expect(vi.getTimerCount()).toBe(0);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(FakeWebSocket.made).toEqual([]);
  expect(namespaces.hub.getToken).not.toHaveBeenCalled();
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

// Node has a WebSocket since version 22.
const platforms = [FakeWebSocket, undefined];

test.each(platforms)("components of Vue are stopped, outside, and alone", async (platform) => {
  vi.stubGlobal("WebSocket", platform);
  const Chat = defineComponent(() => {
    const { socket, status } = useSocket("hub");
    const { joined, typists } = useThread(socket, 42);
    const members = usePresence(socket, "sales");
    return (): VNode => h("p", `${status.value} ${joined.value} ${typists.value.length} ${members.value.length}`);
  });
  const App = defineComponent(() => {
    provideSockets(namespaces);
    return () => h(Chat);
  });
  expect(await renderToString(createSSRApp(App))).toBe("<p>stopped false 0 0</p>");
});

let svelte: typeof import("svelte/server") & { App: import("svelte").Component<object> };

beforeAll(async () => {
  const page = 'export { render } from "svelte/server"; export { default as App } from "../../../test/pages/App.svelte";';
  svelte = await bundled("server", page, "node");
}, 60_000);

test.each(platforms)("components of Svelte are stopped, outside, and alone", async (platform) => {
  vi.stubGlobal("WebSocket", platform);
  const { writable } = await import("svelte/store");
  const view = writable({ threads: ["42"], group: "sales" });
  const { body } = await svelte.render(svelte.App, { props: { namespaces, view } });
  expect(body.replaceAll(/<!--.*?-->/g, "").replaceAll(/\s+/g, " ")).toBe(
    '<section id="thread-42"><p class="status">stopped</p> <p class="connected">false</p> <p class="state">outside</p> ' +
      '<p class="typists"></p></section> <p class="people"></p>',
  );
});
