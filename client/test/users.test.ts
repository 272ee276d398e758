// @vitest-environment jsdom
/** A change of user needs no key: what Vue and Svelte show, with the sockets that they share with React. */

import type { Component } from "svelte";
import { writable, type Writable } from "svelte/store";
import { afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { createApp, defineComponent, h, nextTick, ref, type VNode } from "vue";
import { provideSockets, usePresence, useSocket, useThread, type Namespaces, type User } from "../src/vue.js";
import { useThread as useThreadStore } from "../src/svelte.js";
import { bundled } from "./bundle.js";
import { FakeWebSocket, connectTo, token } from "./fake.js";

/** Mounts a page; returns what changes its user, and what unmounts it. */
type Mount = (target: Element, namespaces: Namespaces) => { login: (user: User) => unknown; unmount: () => unknown };

const bearers = (): (string | undefined)[] => FakeWebSocket.made.map((each) => each.protocols[1]?.split(".")[1]);
const soon = (milliseconds = 20): Promise<unknown> => vi.advanceTimersByTimeAsync(milliseconds);
const shown = async (target: Element): Promise<string> => {
  await nextTick();
  await soon(0);
  return (target.textContent ?? "").trim();
};

let svelte: typeof import("svelte") & { Session: Component<{ namespaces: Namespaces; user: Writable<User> }> };

beforeAll(async () => {
  svelte = await bundled("users", 'export * from "svelte"; export { default as Session } from "../../../test/pages/Session.svelte";');
}, 60_000);

beforeEach(() => {
  vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
  FakeWebSocket.reset();
});

afterEach(async () => {
  await soon(1_001);
  expect(FakeWebSocket.open).toEqual([]);
  vi.useRealTimers();
});

const inVue: Mount = (target, namespaces) => {
  const user = ref<User>(null);
  const Self = defineComponent(() => {
    const { socket, status, refusal } = useSocket("hub");
    const { joined, refused } = useThread(socket, 42);
    const people = usePresence(socket, "sales");
    const words = (): string[] => [status.value, joined.value ? "in" : "out", refused.value ?? "-"];
    const names = (): string => people.value.map(({ name }) => name).join();
    return (): VNode => h("p", [...words(), names(), refusal.value?.code ?? "-"].join(" "));
  });
  const Session = defineComponent(() => {
    provideSockets(namespaces, user);
    return () => h(Self);
  });
  const app = createApp(Session);
  app.mount(target);
  return { login: (id) => (user.value = id), unmount: () => app.unmount() };
};

const inSvelte: Mount = (target, namespaces) => {
  const user = writable<User>(null);
  const page = svelte.mount(svelte.Session, { target, props: { namespaces, user } });
  return { login: (id) => user.set(id), unmount: () => svelte.unmount(page) };
};

test.each([
  ["Vue", inVue],
  ["Svelte", inSvelte],
])("another user in %s gets nothing of the last one", async (_, mount) => {
  let name = "none";
  const target = document.createElement("div");
  const error = { code: "forbidden_role", message: "not here" };
  const { login, unmount } = mount(target, {
    hub: {
      url: "ws://server/hub/",
      getToken: () => token(undefined, name),
      WebSocket: FakeWebSocket as unknown as typeof WebSocket,
      fetch: () => Promise.resolve(Response.json({ error }, { status: 403 })),
    },
  });
  await soon(60_000);
  expect([FakeWebSocket.made, await shown(target)]).toEqual([[], "stopped out -  -"]);

  FakeWebSocket.answers = { "join:thread": { code: "forbidden", message: "not allowed" } };
  login((name = "ana"));
  await soon();
  const members = [{ user_id: "7", name: "Ana", status: "online", since: "" }];
  FakeWebSocket.last.say("presence:state", { group: "sales", members, total: 1, offset: "1" });
  expect(await shown(target)).toBe("connected out forbidden Ana -");

  FakeWebSocket.answers = {};
  FakeWebSocket.user = { user_id: "8", role: "attendant" };
  login((name = "bob"));
  expect(await shown(target)).not.toContain("Ana");
  await soon();
  expect(await shown(target)).toBe("connected in -  -");
  expect(bearers()).toEqual(["ana", "bob"]);

  FakeWebSocket.script = ["refuse"];
  login((name = "eve"));
  await soon();
  expect(await shown(target)).toBe("denied out -  forbidden_role");
  login(null);
  await soon(60_000);
  expect(bearers()).toEqual(["ana", "bob", "eve"]);
  unmount();
});

test("a subscriber of a thread that another one removes is not called any more", async () => {
  const socket = connectTo();
  const thread = useThreadStore(socket, "42");
  const seen: boolean[] = [];
  const ends = [thread.subscribe(({ joined }) => joined && ends[1]?.()), thread.subscribe(({ joined }) => seen.push(joined))];
  await soon();
  expect([socket.isIn("42"), seen]).toEqual([true, [false]]);
  for (const end of ends) end();
  socket.disconnect();
});
