/** The classes of a browser fit the options. */

import { Socket } from "realtime-sockets";

export function open(url: string): Socket {
  return new Socket({ url, getToken: () => "token", WebSocket, fetch, autoConnect: false });
}
