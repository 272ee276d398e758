/** A CommonJS module beside ECMAScript modules: it knows the events that core.ts declares, too. */

import { CLOSE_REASONS, type Socket } from "realtime-sockets";
import { useSocketEvent } from "realtime-sockets/react";

export function Tickets({ socket }: { socket: Socket }): null {
  socket.emit("ticket:watch", { ticket_id: 7 });
  useSocketEvent(socket, "ticket:opened", ({ ticket_id }) => ticket_id.length);
  return null;
}

if (CLOSE_REASONS[4401] !== "token expired") throw new Error("not what it says it is");
