"use client";

import { useRouter } from "next/navigation";
import { useState } from "react";
import type { ServerEvents } from "realtime-sockets";
import { useGap, usePresence, useSocket, useSocketEvent, useThread } from "realtime-sockets/react";

type Message = ServerEvents["thread:message"];

export function Thread({ id }: { id: string }) {
  const { socket, status } = useSocket("hub");
  const { typists, sendTyping, stopTyping } = useThread(socket, id);
  const [messages, setMessages] = useState<readonly Message[]>([]);
  const router = useRouter();

  useSocketEvent(socket, "thread:message", (message) => {
    if (message.thread_id === id) setMessages((known) => [...known, message]);
  });
  // Server components refetch their data. With TanStack Query, call `invalidateQueries()` instead.
  useGap(socket, () => router.refresh());

  return (
    <section aria-label={`Thread ${id}`}>
      <p role="status">{status}</p>
      <ol>
        {messages.map((message) => (
          <li key={message.message_id}>{String(message.body)}</li>
        ))}
      </ol>
      <p>{typists.map((typist) => `${typist.name} is typing…`).join(" ")}</p>
      {/* What is written is sent to the backbone, which stores and publishes it. */}
      <input aria-label="Message" onChange={sendTyping} onBlur={stopTyping} />
    </section>
  );
}

export function Present({ group }: { group: string }) {
  const { socket } = useSocket("hub");
  const members = usePresence(socket, group);
  return (
    <ul aria-label="Present">
      {members.map((member) => (
        <li key={member.user_id}>{`${member.name} (${member.status})`}</li>
      ))}
    </ul>
  );
}
