// @vitest-environment jsdom
/** Random scripts for the hooks: components come, go and change at any moment, also in handlers, while the server fails. */

import { StrictMode, createElement, useEffect, useLayoutEffect, type ReactNode } from "react";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";
import type { Component } from "svelte";
import { writable, type Writable } from "svelte/store";
import { afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";
import { createApp, defineComponent, h, nextTick, onMounted, onScopeDispose, onUnmounted, shallowRef, watchEffect } from "vue";
import type { Member, Socket, Where } from "../src/index.js";
import * as react from "../src/react.js";
import type { Namespaces, User } from "../src/vue.js";
import * as vue from "../src/vue.js";
import { bundled } from "./bundle.js";
import { soon } from "./fake.js";
import { Connection, World, happen } from "./world.js";

/** Set them to look for more, or to see one again. */
const { SEEDS = "40", FIRST = "1", TRACE } = process.env;

interface Shown {
  status: string;
  joined: boolean;
  refused: string | undefined;
  typists: readonly vue.Typist[];
  people: readonly Member[];
  thread: string | null;
}

/** A component on the page. */
interface Leaf {
  id: number;
  thread: string | null;
  probe: Probe;
}

/** A page with these leaves and this user; `leave` unmounts it. */
interface Page {
  render(leaves: Leaf[]): void;
  login(user: User): void;
  /** Lets the framework finish. */
  flush(): Promise<unknown>;
  leave(): void;
}
type Mount = (namespaces: Namespaces, isStrict: boolean) => Page;

/** What a component sees. */
class Probe {
  isMounted = false;
  shown: Shown | undefined;
  /** Call it with every key, or when a message was sent. */
  type: (isSent: boolean) => void = () => undefined;
  readonly got: string[] = [];
  #from = 0;

  constructor(private readonly script: Script) {}

  readonly meet = (socket: Socket): void => this.script.meet(socket);

  begin(): void {
    if (this.got.length === 0) this.#from = this.script.published.length;
    this.isMounted = true;
  }

  show(shown: Shown): void {
    this.shown = shown;
  }

  get({ room, offset }: Where): void {
    if (!this.isMounted) this.script.world.faults.push("called while it is not mounted");
    this.got.push(`${room} ${offset}`);
    this.script.react();
  }

  end(): void {
    this.isMounted = false;
    this.check();
  }

  /** It got every event once; perhaps not the one in whose handler it was unmounted. */
  check(): void {
    const expected = this.script.published.slice(this.#from);
    const isLess = !this.isMounted && this.got.length === expected.length - 1;
    const wanted = isLess ? expected.slice(0, -1) : expected;
    if (String(wanted) !== String(this.got)) this.script.world.faults.push(`got ${this.got} instead of ${wanted}`);
  }
}

class Script {
  readonly world: World;
  readonly page: Page;
  /** All that the socket handed on, in order. */
  readonly published: string[] = [];
  socket: Socket | undefined;
  leaves: Leaf[] = [];
  user: User = "7";
  /** Handlers that the hooks have not removed. */
  readonly held = new Set<unknown>();
  #depth = 0;
  #last = 0;

  constructor(seed: number, mount: Mount) {
    this.world = new World(seed);
    const { world } = this;
    const hub = {
      url: "ws://server/hub/",
      WebSocket: Connection as never,
      random: world.chance.next,
      getToken: () => world.token(),
      fetch: ((_: string, { signal }: { signal: AbortSignal }) => world.verdict(signal)) as never,
    };
    this.page = mount({ hub }, world.chance.of(0.5));
  }

  /** Counts what listens to the socket. */
  meet(socket: Socket): void {
    if (socket === this.socket) return;
    if (this.socket !== undefined) this.world.faults.push("there are two sockets");
    this.socket = socket;
    socket.on("thread:message", (_, { room, offset }) => this.published.push(`${room} ${offset}`));
    for (const name of ["on", "when"] as const) {
      const original = socket[name].bind(socket) as (...all: unknown[]) => () => void;
      const counted = (...all: unknown[]): (() => void) => {
        const give = original(...all);
        const what = [name, all[0]];
        this.held.add(what);
        return () => (this.held.delete(what), give());
      };
      Object.assign(socket, { [name]: counted });
    }
  }

  react(): void {
    const { chance, isCalm, unrest } = this.world;
    if (isCalm || this.#depth > 1 || !chance.of(unrest)) return;
    this.#depth += 1;
    this.act();
    this.#depth -= 1;
  }

  act(): void {
    const { chance } = this.world;
    const threads = ["1", "2", null];
    const other = chance.below(this.leaves.length);
    const [name, action] = chance.one<readonly [string, () => void]>([
      ["mount", () => this.#render([...this.leaves, this.#leaf(chance.one(threads))])],
      ["mount", () => this.#render([this.#leaf(chance.one(threads)), ...this.leaves])],
      ["mount two", () => this.#render([...this.leaves, this.#leaf("1"), this.#leaf("1")])],
      ["unmount", () => this.#render(this.leaves.filter((_, at) => at !== other))],
      ["unmount", () => this.#render(this.leaves.filter((_, at) => at !== other))],
      ["unmount all", () => this.#render([])],
      ["another thread", () => this.#render(this.leaves.map((leaf, at) => (at === other ? { ...leaf, thread: chance.one(threads) } : leaf)))],
      ["another user", () => this.#login(chance.one(["7", "8", null, "7"]))],
      ["disconnect", () => chance.of(0.3) && this.socket?.disconnect()],
      ["connect", () => this.user !== null && this.leaves.length > 0 && this.socket?.connect()],
      ["reconnect", () => this.socket?.reconnect()],
      ["type", () => this.leaves[other]?.probe.type(chance.of(0.3))],
      ["typist", () => this.#typist(chance.one(["1", "2"]))],
      ["people", () => this.#people()],
      ["forbid", () => this.world.forbidden.add(`thread:${chance.one(["1", "2"])}`)],
    ]);
    this.world.trace.push(`${name} ${other}`);
    action();
  }

  /** Another user types, or stops. */
  #typist(thread: string): void {
    const { chance } = this.world;
    const connection = this.world.open.find(({ live }) => live.has(`thread:${thread}`));
    const [user_id, typing] = [chance.one(["8", "9"]), chance.of(0.7)];
    connection?.say("thread:typing", { thread_id: thread, user_id, namespace: "portal", name: user_id, typing });
  }

  /** Other users come and go. */
  #people(): void {
    const { chance, open } = this.world;
    const members = ["ana", "bob"].filter(() => chance.of(0.5)).map((name) => ({ user_id: name, name, status: "online", since: "" }));
    open.find(({ live }) => live.has("presence:a"))?.say("presence:state", { group: "a", members, offset: "1" });
  }

  #leaf(thread: string | null): Leaf {
    return { id: (this.#last += 1), thread, probe: new Probe(this) };
  }

  #render(leaves: Leaf[]): void {
    this.leaves = leaves;
    this.page.render(leaves);
  }

  #login(user: User): void {
    this.user = user;
    if (user !== null) this.world.user = String(user);
    this.page.login(user);
  }

  /** What holds at any moment. */
  check(): void {
    const { socket, world } = this;
    for (const { id, thread, probe } of this.leaves) {
      const { shown } = probe;
      if (!socket || !shown || !probe.isMounted) return void world.faults.push(`${id} is not shown`);
      const isIn = thread !== null && socket.isIn(thread);
      const wanted = [socket.status, isIn, thread, socket.presence("a")];
      const found = [shown.status, shown.joined, shown.thread, shown.people];
      if (JSON.stringify(found) !== JSON.stringify(wanted)) world.faults.push(`${id} shows ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`);
      const other = this.leaves.find((each) => each.thread === thread)?.probe.shown;
      const [one, all] = [other, shown].map((each) => JSON.stringify([each?.refused, each?.typists]));
      if (one !== all) world.faults.push(`${id} shows not what others show`);
      if (shown.typists.length > 0 && !(shown.joined && shown.status === "connected")) world.faults.push(`${id} shows typists from outside`);
      if (shown.joined && shown.refused !== undefined) world.faults.push(`${id} is joined and refused`);
      probe.check();
    }
    if (this.user === null && world.open.length > 0) world.faults.push("a socket without a user");
  }

  /** When all works, every component is where it wants to be, and gets what is published. */
  async settle(): Promise<void> {
    const { world, socket } = this;
    world.isCalm = true;
    world.forbidden.clear();
    if (this.user === null) this.#login("7");
    if (this.leaves.length === 0) this.#render([this.#leaf("1")]);
    await this.rest(700_000);
    (socket ?? this.socket)?.connect();
    for (let round = 0; round < 3; round += 1) await this.rest(300_000);
    const isNew = world.chance.of(0.5);
    if (isNew) {
      for (const user of [null, this.user]) this.#login(user); // who was not refused
      await this.rest(10_000);
    }
    for (const room of ["thread:1", "thread:2"]) world.publish(room);
    await this.rest(10_000);
    this.check();
    const live = world.open[0]?.live ?? new Set();
    for (const thread of ["1", "2"]) {
      const room = `thread:${thread}`;
      const users = this.leaves.filter((leaf) => leaf.thread === thread);
      const isRefused = !isNew && users.some(({ probe }) => probe.shown?.refused !== undefined);
      const isWanted = users.length > 0 && !isRefused;
      if (live.has(room) !== isWanted) world.faults.push(`server: ${room} ${live.has(room)}, wanted ${isWanted}`);
      for (const { probe } of isWanted ? users : []) {
        if (probe.shown?.typists.length) world.faults.push(`typists are left in ${room}`);
        if (!probe.shown?.joined) world.faults.push(`not joined ${room}`);
        if (!probe.got.includes(`${room} ${world.end(room)}`)) world.faults.push(`${room}: the last was not received`);
      }
    }
  }

  async rest(milliseconds: number): Promise<void> {
    await soon(milliseconds);
    await this.page.flush();
  }

  async end(): Promise<void> {
    const { world, page } = this;
    world.isCalm = true;
    if (world.chance.of(0.5)) this.#render([]);
    else page.leave();
    await page.flush();
    await soon(1_001);
    if (world.open.length) world.faults.push("a socket is open");
    await soon(30_000); // the server's own timers
    if (vi.getTimerCount()) world.faults.push(`${vi.getTimerCount()} timers are left`);
    page.leave();
    await page.flush();
    if (this.held.size) world.faults.push(`handlers are left: ${JSON.stringify([...this.held])}`);
    this.socket?.connect();
    await soon(1000);
    const rooms = [...(world.open[0]?.live ?? [])].filter((room) => room.startsWith("thread:"));
    if (rooms.length) world.faults.push(`rooms are left: ${rooms}`);
    this.socket?.disconnect();
    await soon(30_000);
  }
}

const inReact: Mount = (namespaces, isStrict) => {
  function Page({ leaf: { probe, thread } }: { leaf: Leaf }): ReactNode {
    const { socket, status } = react.useSocket("hub");
    probe.meet(socket);
    const { joined, refused, typists, sendTyping, stopTyping } = react.useThread(socket, thread);
    probe.type = (isSent) => (isSent ? stopTyping() : sendTyping());
    const people = react.usePresence(socket, "a");
    react.useSocketEvent(socket, "thread:message", (_, where) => probe.get(where));
    useLayoutEffect(() => probe.show({ status, joined, refused, typists, people, thread }));
    useEffect(() => (probe.begin(), () => probe.end()), [probe]);
    return null;
  }
  const root = createRoot(document.createElement("div"));
  let leaves: Leaf[] = [];
  let user: User = "7";
  const show = (): void => {
    const pages = leaves.map((leaf) => createElement(Page, { key: leaf.id, leaf }));
    const page = createElement(react.SocketProvider, { namespaces, user: user as string | null }, ...pages);
    flushSync(() => root.render(isStrict ? createElement(StrictMode, null, page) : page));
  };
  return {
    render: (latest) => ((leaves = latest), show()),
    login: (latest) => ((user = latest), show()),
    flush: () => soon(0),
    leave: () => root.unmount(),
  };
};

const inVue: Mount = (namespaces) => {
  const Page = defineComponent({
    props: { leaf: { type: Object, required: true } },
    setup(props) {
      const { probe } = props.leaf as Leaf;
      const { socket, status } = vue.useSocket("hub");
      probe.meet(socket);
      const { joined, refused, typists, sendTyping, stopTyping } = vue.useThread(socket, () => (props.leaf as Leaf).thread);
      probe.type = (isSent) => (isSent ? stopTyping() : sendTyping());
      const people = vue.usePresence(socket, "a");
      onScopeDispose(socket.on("thread:message", (_, where) => probe.get(where)));
      probe.begin();
      onMounted(() => watchEffect(() => {
        const { thread } = props.leaf as Leaf;
        const state = { joined: joined.value, refused: refused.value, typists: typists.value };
        probe.show({ status: status.value, ...state, people: people.value, thread });
      }));
      onUnmounted(() => probe.end());
      return () => null;
    },
  });
  const user = shallowRef<User>("7");
  const leaves = shallowRef<Leaf[]>([]);
  const app = createApp(defineComponent(() => {
    vue.provideSockets(namespaces, user);
    return () => leaves.value.map((leaf) => h(Page, { key: leaf.id, leaf }));
  }));
  app.mount(document.createElement("div"));
  let isLeft = false;
  return {
    render: (latest) => void (leaves.value = latest),
    login: (latest) => void (user.value = latest),
    flush: () => nextTick(),
    leave: () => !isLeft && ((isLeft = true), app.unmount()),
  };
};

type Props = { namespaces: Namespaces; user: Writable<User>; leaves: Writable<Leaf[]> };
let svelte: typeof import("svelte") & { Board: Component<Props> };

const inSvelte: Mount = (namespaces) => {
  const user = writable<User>("7");
  const leaves = writable<Leaf[]>([]);
  const page = svelte.mount(svelte.Board, { target: document.createElement("div"), props: { namespaces, user, leaves } });
  let isLeft = false;
  return {
    render: (latest) => leaves.set(latest),
    login: (latest) => user.set(latest),
    flush: () => (svelte.flushSync(), soon(0)),
    leave: () => !isLeft && ((isLeft = true), void svelte.unmount(page)),
  };
};

async function run(seed: number, mount: Mount): Promise<string[]> {
  const script = new Script(seed, mount);
  const { world } = script;
  for (let step = 0; step < 40; step += 1) {
    if (world.chance.of(0.6)) script.act();
    else happen(world);
    await script.page.flush();
    await script.rest(world.chance.one([0, 0, 1, 10, 50, 500, 999, 1001, 5000, 31_000]));
    script.check();
    if (world.faults.length) break;
  }
  if (world.faults.length === 0) await script.settle();
  await script.end();
  if (world.faults.length && TRACE) console.log(world.trace.join("\n"), world.faults);
  return world.faults;
}

beforeAll(async () => {
  svelte = await bundled("hooks", 'export * from "svelte"; export { default as Board } from "../../../test/pages/Board.svelte";');
}, 60_000);

beforeEach(() => void vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") }));
afterEach(() => void vi.useRealTimers());

test.each([
  ["React", inReact],
  ["Vue", inVue],
  ["Svelte", inSvelte],
])("random scripts of components in %s end as they should", { timeout: 600_000 }, async (_, mount) => {
  const found: Record<string, string[]> = {};
  for (let seed = Number(FIRST); seed < Number(FIRST) + Number(SEEDS); seed += 1) {
    const faults = await run(seed, mount);
    vi.clearAllTimers();
    if (faults.length) found[seed] = faults;
  }
  expect(found).toEqual({});
});
