/** An application without React, compiled without the types of a browser. */

import { CLOSE_REASONS, Socket, SocketError, type ServerEvents } from "realtime-sockets";

declare module "realtime-sockets" {
  interface ServerEvents {
    "ticket:opened": { ticket_id: string };
  }
  interface ClientEvents {
    "ticket:watch": { ticket_id: string | number };
  }
  interface Acks {
    "ticket:watch": { watching: boolean };
  }
}

class NoWebSocket {
  onmessage = null;
  onclose = null;
  onerror = null;
  send(text: string): void {
    throw new Error(text);
  }
  close(): void {}
}

const unavailable = { status: 503, headers: { get: () => "1" }, json: async () => ({}) };

const socket = new Socket({
  url: "wss://example.com/hub/",
  getToken: () => "token",
  autoConnect: false,
  WebSocket: NoWebSocket,
  fetch: async () => unavailable,
});
socket.on("thread:message", ({ message_id }: ServerEvents["thread:message"]) => message_id.length);
socket.on("ticket:opened", ({ ticket_id }) => ticket_id.length);
// @ts-expect-error there is no such event: the types have arrived
socket.on("thread:massage", () => undefined);

export async function watch(): Promise<boolean> {
  socket.emit("ticket:watch", { ticket_id: 7 });
  // @ts-expect-error the ticket is missing
  socket.emit("ticket:watch", {});
  return (await socket.call("ticket:watch", { ticket_id: "7" })).watching;
}

if (socket.status !== "stopped" || CLOSE_REASONS[4401] !== "token expired") throw new Error("not what it says it is");
socket.call("heartbeat", {}).catch((error: unknown) => {
  if (!(error instanceof SocketError && ["closed", "timeout"].includes(error.code))) throw error;
});
socket.disconnect();
