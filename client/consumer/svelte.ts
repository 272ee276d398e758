/** A module of an application with Svelte, which knows the events that core.ts declares. */

import { provideSockets, usePresence, useSocket, useThread } from "realtime-sockets/svelte";

export function chat(show: (line: string) => void): void {
  const { socket, status } = useSocket("hub");
  const thread = useThread(socket, "42");
  socket.on("ticket:opened", ({ ticket_id }) => socket.emit("ticket:watch", { ticket_id }));
  // @ts-expect-error a store of typists has no such method
  thread.typists();
  thread.sendTyping();
  status.subscribe(show);
  thread.subscribe(({ typists }) => show(typists.map((typist) => typist.name).join()));
  usePresence(socket, "attendants").subscribe((members) => show(members.map((member) => member.name).join()));
}

if (typeof provideSockets !== "function") throw new Error("not what it says it is");
