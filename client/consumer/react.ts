/** An application with React, which knows the events that core.ts declares. */

import { createElement, type ReactElement, type ReactNode } from "react";
import { SocketProvider, useGap, usePresence, useSocket, useSocketEvent, useThread } from "realtime-sockets/react";

function Chat(): string {
  const { socket, status } = useSocket("hub");
  const { typists } = useThread(socket, "42");
  const members = usePresence(socket, "attendants");
  useSocketEvent(socket, "ticket:opened", ({ ticket_id }) => socket.emit("ticket:watch", { ticket_id }));
  // @ts-expect-error a ticket has no such field
  useSocketEvent(socket, "ticket:opened", ({ title }) => title);
  useGap(socket, ({ room }) => room.length);
  return [status, ...typists.map((typist) => typist.name), ...members.map((member) => member.name)].join();
}

/** TypeScript 5.0, and the types of React before 18.2.8, accept in JSX only a function that returns an element. */
export const provide: (props: { namespaces: {}; children?: ReactNode }) => ReactElement | null = SocketProvider;

const namespaces = { hub: { url: "wss://example.com/hub/", getToken: async () => "token" } };
const application = createElement(SocketProvider, { namespaces }, createElement(Chat));
if (application.props.namespaces !== namespaces) throw new Error("not what it says it is");
