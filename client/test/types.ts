/** Compiled, never run: lines that must not compile are marked, and `tsc` fails if one does. */

import { derived, type Readable } from "svelte/store";
import type { Acks, Socket } from "../src/index.js";
import { usePresence, useThread } from "../src/svelte.js";

declare module "../src/index.js" {
  interface ServerEvents {
    "ticket:opened": { ticket_id: string };
  }
}

export async function checks(socket: Socket): Promise<Acks["join:thread"]> {
  socket.on("thread:message", (message) => message.thread_id.length + message.message_id.length);
  socket.on("thread:message", (message, { room, offset }) => `${room ?? ""}${offset ?? ""}${String(message["body"])}`);
  socket.on("ticket:opened", ({ ticket_id }) => ticket_id.length);
  socket.emit("typing:start", { thread_id: "42" });
  socket.emit("typing:start", { thread_id: 42 });
  socket.emit("cursor:move", { thread_id: 42, position: [1, 2] });
  socket.when("gap", ({ room, reason }) => room + reason);
  socket.when("presence", ({ group }) => socket.presence(group).map(({ name, status }) => name + status));

  // @ts-expect-error there is no such event
  socket.on("thread:massage", () => undefined);
  // @ts-expect-error a message has no such field that is a number
  socket.on("thread:typing", ({ typing }) => typing.length);
  // @ts-expect-error clients cannot send it
  socket.emit("thread:message", { thread_id: "42", message_id: "1" });
  // @ts-expect-error the thread is missing
  socket.emit("typing:start", {});
  // @ts-expect-error the field's name is thread_id
  socket.emit("typing:start", { thread: "42" });
  // @ts-expect-error heartbeat has no data
  socket.emit("heartbeat", { now: 1 });

  const joined = await socket.call("join:thread", { thread_id: "42", since: "1" });
  // @ts-expect-error offset is a string
  joined.offset.toFixed();
  return joined;
}

/** Svelte's own functions take the stores. */
export function summary(socket: Socket): Readable<string> {
  return derived([useThread(socket, 42), usePresence(socket, "sales")], ([{ joined }, members]) => `${joined} ${members.length}`);
}
