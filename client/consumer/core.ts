/** An application without React. */

import { CLOSE_REASONS, Socket, SocketError, type ServerEvents } from "realtime-sockets";

declare module "realtime-sockets" {
  interface ServerEvents {
    "ticket:opened": { ticket_id: string };
  }
}

const socket = new Socket({ url: "wss://example.com/hub/", getToken: () => "token", autoConnect: false });
socket.on("thread:message", ({ message_id }: ServerEvents["thread:message"]) => message_id.length);
socket.on("ticket:opened", ({ ticket_id }) => ticket_id.length);
// @ts-expect-error there is no such event: the types have arrived
socket.on("thread:massage", () => undefined);

if (socket.status !== "stopped" || CLOSE_REASONS[4401] !== "token expired") throw new Error("not what it says it is");
socket.call("heartbeat", {}).catch((error: unknown) => {
  if (!(error instanceof SocketError && error.code === "closed")) throw error;
});
