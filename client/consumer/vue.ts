/** An application with Vue, which knows the events that core.ts declares. */

import { createSSRApp, defineComponent, h, onScopeDispose, ref, type VNode } from "vue";
import { provideSockets, usePresence, useSocket, useThread } from "realtime-sockets/vue";

const Chat = defineComponent({
  setup() {
    const { socket, status } = useSocket("hub");
    const { joined, typists } = useThread(socket, ref(42));
    const members = usePresence(socket, () => "attendants");
    onScopeDispose(socket.on("ticket:opened", ({ ticket_id }) => socket.emit("ticket:watch", { ticket_id })));
    // @ts-expect-error a list of typists is no text
    typists.value.trim();
    return (): VNode => h("p", `${status.value} ${joined.value} ${typists.value.length} ${members.value.length}`);
  },
});

const application = createSSRApp({
  setup() {
    provideSockets({ hub: { url: "wss://example.com/hub/", getToken: async () => "token" } });
    return (): VNode => h(Chat);
  },
});
if (typeof application.mount !== "function") throw new Error("not what it says it is");
