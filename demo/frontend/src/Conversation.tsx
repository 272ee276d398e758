import { useEffect, useLayoutEffect, useRef, useState } from "react";
import { useThread } from "realtime-sockets/react";
import type { Socket } from "realtime-sockets";
import type { Session } from "./api";
import type { Chat, Desk } from "./chats";
import { time } from "./parts";

export interface ConversationProps {
  chat: Chat;
  desk: Desk;
  session: Session;
  socket: Socket;
  /** Focus the message field, because the person has just opened the conversation. */
  autoFocus?: boolean;
  onBack?: () => void;
}

type Live = Pick<ReturnType<typeof useThread>, "typists" | "sendTyping" | "stopTyping">;

const NOT_LIVE: Live = { typists: [], sendTyping: () => undefined, stopTyping: () => undefined };

/** A conversation: live in its room while it is open, static before and after. */
export function Conversation(props: ConversationProps) {
  return props.chat.status === "open" ? <LiveConversation {...props} /> : <Page {...props} live={NOT_LIVE} />;
}

function LiveConversation(props: ConversationProps) {
  const live = useThread(props.socket, props.chat.thread_id);
  useFetched(props.desk, props.chat.thread_id, live.joined);
  return <Page {...props} live={live} />;
}

/** Joins the room before it fetches, so that no message is missed in between. */
export function useFetched({ fetch }: Desk, threadId: string, joined: boolean): void {
  useEffect(() => {
    if (joined) void fetch(threadId);
  }, [joined, threadId, fetch]);
}

function Page({ chat, desk, session, live, autoFocus = false, onBack }: ConversationProps & { live: Live }) {
  const { thread_id, status, topic, customer, attendant, messages } = chat;
  const me = session.me;
  const other = customer.user_id === me ? attendant : customer;
  const state = { waiting: "waiting for an attendant…", open: `with ${other?.name}`, ended: "ended" }[status];
  const log = useRef<HTMLOListElement>(null);
  useLayoutEffect(() => {
    log.current?.scrollTo({ top: log.current.scrollHeight });
  }, [messages.length, thread_id]);

  return (
    <article className="chat" aria-label={topic}>
      <header className="title">
        {onBack && (
          <button type="button" className="plain back" aria-label="Back to the list" onClick={onBack}>
            ‹
          </button>
        )}
        <div>
          <strong className="topic">{topic}</strong>
          <span className="state">{state}</span>
        </div>
        {status !== "ended" && (
          <button
            type="button"
            className="end"
            onClick={() =>
              desk.attempt(async () => desk.dispatch({ type: "changed", conversation: await session.end(thread_id) }))
            }
          >
            End chat
          </button>
        )}
      </header>
      <ol className="log" role="log" aria-label="Messages" tabIndex={0} ref={log}>
        {messages.map(({ message_id, author, body, created_at }, index) => (
          <li
            key={message_id}
            className={author.user_id === me ? "own" : ""}
            data-follows={messages[index - 1]?.author.user_id === author.user_id || undefined}
          >
            <small>
              {author.name} · {time(created_at)}
            </small>
            {body}
          </li>
        ))}
      </ol>
      <p className="typing" aria-live="polite">
        {typing(live.typists.map(({ name }) => name))}
      </p>
      <Composer
        key={thread_id}
        autoFocus={autoFocus}
        disabled={status !== "open"}
        onKey={live.sendTyping}
        onSend={(body) => {
          live.stopTyping();
          return desk.attempt(async () => {
            const message = await session.write(thread_id, body);
            desk.dispatch({ type: "written", message, unread: false });
          });
        }}
      />
    </article>
  );
}

function typing(names: readonly string[]): string {
  if (names.length === 0) return "";
  return `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…`;
}

function Composer({
  autoFocus,
  disabled,
  onKey,
  onSend,
}: {
  autoFocus: boolean;
  disabled: boolean;
  onKey: () => void;
  onSend: (body: string) => Promise<boolean>;
}) {
  const [text, setText] = useState("");
  return (
    <form
      className="compose"
      onSubmit={async (event) => {
        event.preventDefault();
        if (text.trim() === "") return;
        setText(""); // before the request, so that pressing Enter twice does not send it twice
        if (!(await onSend(text))) setText((typed) => typed || text);
      }}
    >
      <input
        aria-label="Message"
        placeholder="Write a message"
        maxLength={4000}
        autoComplete="off"
        autoFocus={autoFocus}
        disabled={disabled}
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          onKey();
        }}
      />
      <button className="primary" disabled={disabled || text.trim() === ""}>
        Send
      </button>
    </form>
  );
}
