import { createApp, defineComponent, h, onScopeDispose, shallowRef, type ShallowRef, type VNode } from "vue";
import type { Namespaces } from "../../src/vue.js";
import { provideSockets, usePresence, useSocket, useThread } from "../../src/vue.js";
import { page, present, type View } from "./page.js";

const Chat = defineComponent({
  props: { threadId: { type: String, required: true } },
  setup(props) {
    const { socket, connected, status } = useSocket("hub");
    const { joined, refused, typists, sendTyping, stopTyping } = useThread(socket, () => props.threadId);
    onScopeDispose(
      socket.on("thread:message", ({ thread_id, message_id }) => {
        if (thread_id === props.threadId) page.seen.push(message_id);
      }),
    );
    Object.assign(page, { socket, sendTyping, stopTyping });
    return (): VNode =>
      h("section", { id: `thread-${props.threadId}` }, [
        h("p", { class: "status" }, status.value),
        h("p", { class: "connected" }, String(connected.value)),
        h("p", { class: "state" }, refused.value ?? (joined.value ? "in" : "outside")),
        h("p", { class: "typists" }, typists.value.map((typist) => typist.name).join(", ")),
      ]);
  },
});

const People = defineComponent({
  props: { group: { type: String, required: true } },
  setup(props) {
    const members = usePresence(useSocket("hub").socket, () => props.group);
    return (): VNode => h("p", { class: "people" }, members.value.map(({ name, status }) => `${name} ${status}`).join(", "));
  },
});

const App = (view: ShallowRef<View>, namespaces: Namespaces) => () => {
  provideSockets(namespaces);
  return (): VNode[] => [
    ...view.value.threads.map((threadId, index) => h(Chat, { key: index, threadId })),
    ...(view.value.group === undefined ? [] : [h(People, { group: view.value.group })]),
  ];
};

present((target, hub, first) => {
  const view = shallowRef(first);
  const app = createApp({ setup: App(view, { hub }) });
  app.mount(target);
  return { show: (next) => (view.value = next), unmount: () => app.unmount() };
});
