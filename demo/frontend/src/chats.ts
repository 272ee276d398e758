/** The conversations of one side: fetched, and kept up to date by events. */

import { useCallback, useEffect, useReducer, useState } from "react";
import { useGap, useSocketEvent } from "realtime-sockets/react";
import type { Socket } from "realtime-sockets";
import { HttpError, type Conversation, type Message, type Session } from "./api";

export interface Chat extends Conversation {
  messages: readonly Message[];
  unread: number;
}

export type Chats = ReadonlyMap<string, Chat>;

type Change =
  | { type: "listed"; conversations: Conversation[] }
  | { type: "changed"; conversation: Conversation; messages?: Message[] }
  | { type: "written"; message: Message; unread: boolean }
  | { type: "read"; threadId: string }
  | { type: "gone"; threadId: string };

export function reduce(chats: Chats, change: Change): Chats {
  const next = new Map(chats);
  const put = (conversation: Conversation, messages: readonly Message[] = []): void => {
    const known = chats.get(conversation.thread_id);
    next.set(conversation.thread_id, {
      ...conversation,
      messages: messages.reduce(add, known?.messages ?? []),
      unread: known?.unread ?? 0,
    });
  };
  switch (change.type) {
    case "listed": {
      const listed = new Set(change.conversations.map(({ thread_id }) => thread_id));
      for (const [id, chat] of chats) if (chat.status !== "ended" && !listed.has(id)) next.delete(id);
      change.conversations.forEach((conversation) => put(conversation));
      break;
    }
    case "changed":
      put(change.conversation, change.messages);
      break;
    case "written": {
      const chat = chats.get(change.message.thread_id);
      if (chat === undefined) break;
      const messages = add(chat.messages, change.message);
      const unread = chat.unread + Number(change.unread && messages !== chat.messages);
      next.set(chat.thread_id, { ...chat, messages, unread });
      break;
    }
    case "read": {
      const chat = chats.get(change.threadId);
      if (chat === undefined || chat.unread === 0) return chats;
      next.set(chat.thread_id, { ...chat, unread: 0 });
      break;
    }
    case "gone":
      next.delete(change.threadId);
  }
  return next;
}

/** Adds a message once, although it arrives by an event, the answer to a POST, and a fetch. */
function add(messages: readonly Message[], message: Message): readonly Message[] {
  if (messages.some(({ message_id }) => message_id === message.message_id)) return messages;
  return [...messages, message].sort((a, b) => Number(a.message_id) - Number(b.message_id));
}

export interface Desk {
  chats: Chats;
  loaded: boolean;
  /** The last error, as a text for the user. */
  problem: string;
  dispatch: (change: Change) => void;
  /** Runs an action that may fail; true if it succeeded. */
  attempt: (action: () => Promise<unknown>) => Promise<boolean>;
  /** Fetches a conversation with its messages: after its room was entered, and after a gap. */
  fetch: (threadId: string) => Promise<boolean>;
  refetch: () => Promise<boolean>;
}

/** `isShown` returns whether the thread is visible; messages of other threads count as unread. */
export function useDesk(session: Session, socket: Socket, connected: boolean, isShown: (id: string) => boolean): Desk {
  const [chats, dispatch] = useReducer(reduce, new Map<string, Chat>());
  const [loaded, setLoaded] = useState(false);
  const [problem, setProblem] = useState("");

  const attempt = useCallback(async (action: () => Promise<unknown>) => {
    try {
      await action();
      setProblem("");
      return true;
    } catch (error) {
      setProblem(error instanceof HttpError ? error.message : "The server cannot be reached.");
      return false;
    }
  }, []);
  const refetch = useCallback(
    () =>
      attempt(async () => {
        dispatch({ type: "listed", conversations: await session.conversations() });
        setLoaded(true);
      }),
    [attempt, session],
  );
  const fetch = useCallback(
    (threadId: string) =>
      attempt(async () => {
        const { messages, ...conversation } = await session.conversation(threadId);
        dispatch({ type: "changed", conversation, messages });
      }),
    [attempt, session],
  );

  // Connects before it fetches the list, so that no event is missed. Later connections resume, or report a gap.
  useEffect(() => {
    if (connected && !loaded) void refetch();
  }, [connected, loaded, refetch]);
  useGap(socket, ({ room }) => {
    const [kind, id = ""] = room.split(":");
    void (kind === "thread" ? fetch(id) : refetch());
  });
  useSocketEvent(socket, "thread:message", (data) => {
    const message = data as unknown as Message;
    const unread = message.author.user_id !== session.me && !isShown(message.thread_id);
    dispatch({ type: "written", message, unread });
  });
  useSocketEvent(socket, "chat:accepted", ({ conversation }) => {
    if (conversation !== undefined) dispatch({ type: "changed", conversation: conversation as Conversation });
  });
  useSocketEvent(socket, "chat:ended", ({ thread_id }) => void fetch(thread_id));
  return { chats, loaded, problem, dispatch, attempt, fetch, refetch };
}
