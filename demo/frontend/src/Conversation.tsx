import { useEffect, useLayoutEffect, useRef, useState, type FocusEvent, type ReactNode } from "react";
import { useThread, type Member } from "realtime-sockets/react";
import type { Socket } from "realtime-sockets";
import type { Conversation as Fields, Message, Session } from "./api";
import type { Chat, Desk } from "./chats";
import { Composer } from "./Composer";
import { Confirm, TransferDialog, type Question } from "./dialogs";
import { time } from "./parts";

export interface ConversationProps {
  chat: Chat;
  desk: Desk;
  session: Session;
  socket: Socket;
  /** Focus the message field, because the person has just opened the conversation. */
  autoFocus?: boolean;
  /** Those who the chat can be transferred to; customers have none. */
  colleagues?: readonly Member[];
  onBack?: () => void;
  /** Shown instead of the message field once the chat has ended. */
  after: ReactNode;
}

type Live = Pick<ReturnType<typeof useThread>, "joined" | "typists" | "sendTyping" | "stopTyping">;

const NOT_LIVE: Live = { joined: false, typists: [], sendTyping: () => undefined, stopTyping: () => undefined };

/** A conversation: live in its room while it is open; before, and after its end, as it was fetched. Its key is the thread. */
export function Conversation({ chat, desk, session, socket, autoFocus = false, onBack, colleagues, after }: ConversationProps) {
  const { thread_id, status, messages } = chat;
  const [live, setLive] = useState(NOT_LIVE);
  const focus = useKeptFocus<HTMLElement>(status, ".log");
  useFetched(desk, thread_id, status === "open" ? live.joined : true);

  return (
    <article className="chat" aria-label={chat.topic} data-live={live.joined} {...focus}>
      {status === "open" && <Room socket={socket} threadId={thread_id} onChange={setLive} />}
      <header className="title">
        {onBack && (
          <button type="button" className="plain back" aria-label="Back to the list" onClick={onBack}>
            ‹
          </button>
        )}
        <div>
          <strong className="topic" title={chat.topic}>
            {chat.topic}
          </strong>
          <span className="state">{stateOf(chat, session.me)}</span>
        </div>
        {status === "open" && colleagues && <Transfer chat={chat} desk={desk} session={session} colleagues={colleagues} />}
        {status !== "ended" && <End key={status} chat={chat} desk={desk} session={session} />}
      </header>
      <Log messages={messages} me={session.me} />
      <p className="typing" aria-live="polite">
        {typing(live.typists.map(({ name }) => name))}
      </p>
      {status === "ended" ? (
        after
      ) : (
        <Composer
          draft={desk.drafts.get(thread_id) ?? ""}
          autoFocus={autoFocus}
          onChange={(text) => {
            desk.drafts.set(thread_id, text);
            if (text === "") live.stopTyping();
            else live.sendTyping();
          }}
          onSend={(body) =>
            desk.attempt(async () => {
              const message = await session.write(thread_id, body);
              desk.dispatch({ type: "written", message, unread: false });
            })
          }
        />
      )}
    </article>
  );
}

/** Keeps the client in the chat's room, while the field in which a message may be half written stays as it is. */
function Room({ socket, threadId, onChange }: { socket: Socket; threadId: string; onChange: (live: Live) => void }) {
  const { joined, typists, sendTyping, stopTyping } = useThread(socket, threadId);
  useEffect(() => onChange({ joined, typists, sendTyping, stopTyping }), [joined, typists, sendTyping, stopTyping, onChange]);
  useEffect(() => () => onChange(NOT_LIVE), [onChange]);
  return null;
}

/**
 * Where the focus goes when a change removes what had it, so that a keyboard does not start again at the top of the page.
 *
 * @param state Changes with what is shown.
 * @param place The selector of the element that gets the focus.
 */
export function useKeptFocus<Box extends HTMLElement>(state: unknown, place: string) {
  const box = useRef<Box>(null);
  const hadFocus = useRef(false);
  useEffect(() => {
    if (hadFocus.current && document.activeElement === document.body) box.current?.querySelector<HTMLElement>(place)?.focus();
  }, [state, place]);
  return {
    ref: box,
    onFocus: () => void (hadFocus.current = true),
    onBlur: ({ relatedTarget }: FocusEvent) => void (hadFocus.current &&= relatedTarget === null),
  };
}

/** Joins the room before it fetches, so that no message is missed in between. */
export function useFetched({ fetch, live }: Desk, threadId: string, joined: boolean): void {
  useEffect(() => {
    if (joined) void fetch(threadId);
  }, [joined, live, threadId, fetch]);
}

function otherThan(me: string, { customer, attendant }: Fields): string {
  return (customer.user_id === me ? attendant : customer)?.name ?? "";
}

function stateOf(chat: Chat, me: string): string {
  return { waiting: "waiting for an attendant…", open: `with ${otherThan(me, chat)}`, ended: "ended" }[chat.status];
}

function typing(names: readonly string[]): string {
  if (names.length === 0) return "";
  return `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…`;
}

type ActionProps = Pick<ConversationProps, "chat" | "desk" | "session">;

/** Ends the chat, or gives up waiting, after one question. */
function End({ chat, desk, session }: ActionProps) {
  const [asks, setAsks] = useState(false);
  const question: Question =
    chat.status === "waiting"
      ? { title: "Cancel this chat?", text: "You lose your place in the queue.", yes: "Cancel chat", no: "Keep waiting" }
      : {
          title: "End this chat?",
          text: `Neither you nor ${otherThan(session.me, chat)} can write in it afterwards.`,
          yes: "End chat",
          no: "Keep chatting",
        };
  const end = () =>
    desk.attempt(async () => {
      await session.end(chat.thread_id);
      await desk.fetch(chat.thread_id);
    }, `end ${chat.thread_id}`);
  return (
    <>
      <button type="button" className="action" aria-haspopup="dialog" onClick={() => setAsks(true)}>
        {chat.status === "waiting" ? "Cancel" : "End chat"}
      </button>
      {asks && <Confirm question={question} onYes={() => void end()} onClose={() => setAsks(false)} />}
    </>
  );
}

function Transfer({ chat, desk, session, colleagues }: ActionProps & { colleagues: readonly Member[] }) {
  const [asks, setAsks] = useState(false);
  const transfer = ({ user_id }: Member) =>
    desk.attempt(async () => {
      await session.transfer(chat.thread_id, user_id);
      desk.dispatch({ type: "gone", threadId: chat.thread_id });
    }, `transfer ${chat.thread_id}`);
  return (
    <>
      <button type="button" className="action" aria-haspopup="dialog" onClick={() => setAsks(true)}>
        Transfer
      </button>
      {asks && (
        <TransferDialog colleagues={colleagues} onChoose={(chosen) => void transfer(chosen)} onClose={() => setAsks(false)} />
      )}
    </>
  );
}

const NEAR = 60; // pixels from the end that still count as the end

/** The messages. It stays at the end while the user is there, and where the user reads otherwise. */
function Log({ messages, me }: { messages: readonly Message[]; me: string }) {
  const log = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const size = useRef("");
  const last = messages.at(-1);
  const scrollToEnd = () => log.current?.scrollTo({ top: log.current.scrollHeight });
  useLayoutEffect(() => {
    const isMine = last?.author.user_id === me;
    if (follows.current || isMine) scrollToEnd();
  }, [last?.message_id, me]); // eslint-disable-line react-hooks/exhaustive-deps
  useLayoutEffect(() => {
    // With the window, a message field that grows, or a side that is shown again.
    const resized = new ResizeObserver(() => {
      size.current = sizeOf(log.current!);
      if (follows.current) scrollToEnd();
    });
    resized.observe(log.current!);
    return () => resized.disconnect();
  }, []);
  return (
    <div
      className="log"
      role="log"
      aria-label="Messages"
      tabIndex={0}
      ref={log}
      onScroll={({ currentTarget }) => {
        if (sizeOf(currentTarget) !== size.current) return; // another size moved it, and not the user
        const { scrollHeight, scrollTop, clientHeight } = currentTarget;
        follows.current = scrollHeight - scrollTop - clientHeight < NEAR;
      }}
    >
      <ol>
        {messages.map((message, index) => (
          <Entry key={message.message_id} message={message} previous={messages[index - 1]} me={me} />
        ))}
      </ol>
    </div>
  );
}

function sizeOf({ clientWidth, clientHeight }: HTMLElement): string {
  return `${clientWidth}×${clientHeight}`;
}

function Entry({ message, previous, me }: { message: Message; previous: Message | undefined; me: string }) {
  const { author, body, is_note, created_at } = message;
  if (is_note) {
    return (
      <li className="note">
        {body} <time dateTime={created_at}>{time(created_at)}</time>
      </li>
    );
  }
  const follows = previous !== undefined && !previous.is_note && previous.author.user_id === author.user_id;
  return (
    <li className={author.user_id === me ? "own" : ""} data-follows={follows || undefined}>
      <small>
        <bdi>{author.name}</bdi> · <time dateTime={created_at}>{time(created_at)}</time>
      </small>
      {body}
    </li>
  );
}
