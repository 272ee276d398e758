/** The conversations of one side: fetched, and kept up to date by events. */

import { useCallback, useEffect, useReducer, useRef, useState } from "react";
import { useGap, useSocketEvent } from "realtime-sockets/react";
import type { Socket } from "realtime-sockets";
import { HttpError, type Conversation, type Message, type Session } from "./api";

export interface Chat extends Conversation {
  messages: readonly Message[];
  unread: number;
}

export type Chats = ReadonlyMap<string, Chat>;

/** A conversation never goes back: an answer that an event has overtaken does not undo it. */
const STEPS: readonly Conversation["status"][] = ["waiting", "open", "ended"];

type Change =
  | { type: "listed"; conversations: Conversation[] }
  | { type: "changed"; conversation: Conversation; messages?: Message[]; unread?: boolean }
  | { type: "written"; message: Message; unread: boolean }
  | { type: "read"; threadId: string }
  | { type: "gone"; threadId: string };

export function reduce(chats: Chats, change: Change): Chats {
  const next = new Map(chats);
  const put = (conversation: Conversation, messages: readonly Message[] = [], unread = false): void => {
    const known = chats.get(conversation.thread_id);
    const isOvertaken = known && STEPS.indexOf(conversation.status) < STEPS.indexOf(known.status);
    next.set(conversation.thread_id, {
      ...(isOvertaken ? known : conversation),
      messages: messages.reduce(add, known?.messages ?? []),
      unread: (known?.unread ?? 0) + Number(unread),
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
      put(change.conversation, change.messages, change.unread);
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

/** On a desk where something always changes, the last answer has to do. */
const ATTEMPTS = 5;
const UNREACHABLE = "The server cannot be reached.";
/** Milliseconds until a fetch that did not reach the server is repeated. */
const RETRY = 3_000;

export interface Desk {
  chats: Chats;
  /** Whether the list has been fetched. */
  loaded: boolean;
  /** Whether there has been a connection: from then on, events keep up to date what is fetched. */
  live: boolean;
  /** The last error, as a text for the user. */
  problem: string;
  dismissProblem: () => void;
  dispatch: (change: Change) => void;
  /** Runs an action that may fail; true if it succeeded. While one of that name runs, another is ignored: a double click. */
  attempt: (action: () => Promise<unknown>, name?: string) => Promise<boolean>;
  /** Fetches a conversation with its messages: after its room was entered, and after a gap. */
  fetch: (threadId: string) => Promise<void>;
  refetch: () => Promise<void>;
  /** What was typed in each chat and not sent. */
  drafts: Map<string, string>;
}

/** `isShown` returns whether the thread is visible; messages of other threads count as unread. */
export function useDesk(session: Session, socket: Socket, connected: boolean, isShown: (id: string) => boolean): Desk {
  const [chats, apply] = useReducer(reduce, new Map<string, Chat>());
  const changes = useRef(0); // of conversations, by events and actions
  const dispatch = useCallback((change: Change) => {
    if (change.type === "changed" || change.type === "gone") changes.current += 1;
    apply(change);
  }, []);
  const [loaded, setLoaded] = useState(false);
  const [live, setLive] = useState(false);
  const [problem, setProblem] = useState("");
  const drafts = useRef(new Map<string, string>()).current;
  const { load, unreachable } = useLoading();
  /** What the server answers, asked again if something changed meanwhile: an answer may be older than an event. */
  const settled = useCallback(async <Answer>(ask: () => Promise<Answer>): Promise<Answer> => {
    for (let left = ATTEMPTS; ; left -= 1) {
      const before = changes.current;
      const answer = await ask();
      if (changes.current === before || left === 1) return answer;
    }
  }, []);

  const running = useRef(new Set<string>()).current;
  const attempt = useCallback(async (action: () => Promise<unknown>, name = "") => {
    if (name !== "" && running.has(name)) return false;
    running.add(name);
    try {
      await action();
      setProblem("");
      return true;
    } catch (error) {
      setProblem(error instanceof HttpError ? error.message : UNREACHABLE);
      return false;
    } finally {
      running.delete(name);
    }
  }, [running]);
  const refetch = useCallback(
    () =>
      load(async () => {
        apply({ type: "listed", conversations: await settled(session.conversations) });
        setLoaded(true);
      }),
    [load, settled, session],
  );
  const fetch = useCallback(
    (threadId: string) =>
      load(async () => {
        const { messages, ...conversation } = await settled(() => session.conversation(threadId));
        apply({ type: "changed", conversation, messages });
      }),
    [load, settled, session],
  );

  // At once, so that the first screen does not wait for the connection; and again with the first connection, so that no
  // event in between is missed. Later connections resume, or report a gap.
  useEffect(() => void refetch(), [live, refetch]);
  useEffect(() => {
    if (!connected) return;
    setLive(true);
    setProblem((known) => (known === UNREACHABLE ? "" : known));
  }, [connected]);
  useGap(socket, ({ room }) => {
    const [kind, id = ""] = room.split(":");
    if (kind === "thread") return void fetch(id);
    void refetch();
    // The messages of a customer who waits come in their own room.
    for (const chat of chats.values()) if (chat.status === "waiting" && chat.messages.length > 0) void fetch(chat.thread_id);
  });

  const accept = (data: { [field: string]: unknown }) => {
    const conversation = data["conversation"] as Conversation | undefined;
    if (conversation === undefined) return;
    const { thread_id, customer, attendant } = conversation;
    if (customer.user_id === session.me || attendant?.user_id === session.me) {
      dispatch({ type: "changed", conversation, messages: data["message"] ? [data["message"] as Message] : [] });
    } else {
      dispatch({ type: "gone", threadId: thread_id }); // it was transferred
    }
  };
  useSocketEvent(socket, "thread:message", (data) => {
    const message = data as unknown as Message;
    const unread = message.author.user_id !== session.me && !isShown(message.thread_id);
    if (chats.has(message.thread_id)) dispatch({ type: "written", message, unread });
    else void fetch(message.thread_id); // the chat was started in another tab
  });
  useSocketEvent(socket, "chat:accepted", accept);
  useSocketEvent(socket, "chat:ended", accept);
  return {
    ...{ chats, loaded, live, drafts, dispatch, attempt, fetch, refetch },
    problem: problem || (unreachable ? `${UNREACHABLE} Trying again…` : ""),
    dismissProblem: () => setProblem(""),
  };
}

/** Runs fetches, and repeats those that do not reach the server until they do. */
function useLoading(): { load: (action: () => Promise<void>) => Promise<void>; unreachable: boolean } {
  const [unreachable, setUnreachable] = useState(false);
  const mounted = useRef(true);
  useEffect(() => {
    mounted.current = true;
    return () => {
      mounted.current = false;
    };
  }, []);
  const load = useCallback(async (action: () => Promise<void>) => {
    while (mounted.current) {
      try {
        await action();
        return setUnreachable(false);
      } catch (error) {
        // A conversation that may not be seen (any more) is no fault, and asking again would not change it.
        if (error instanceof HttpError && error.status < 500) return setUnreachable(false);
        setUnreachable(true);
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }, []);
  return { load, unreachable };
}
