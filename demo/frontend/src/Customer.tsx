import { useEffect } from "react";
import { useSocket } from "realtime-sockets/react";
import { useDesk } from "./chats";
import { Conversation } from "./Conversation";
import { Connection, useClosing, type SideProps } from "./parts";

/** The customer's side: one chat at a time, like the chat window of a shop. */
export function CustomerWidget({ session, visible, onUnread, account }: SideProps) {
  const { socket, status, connected } = useSocket("desk");
  const desk = useDesk(session, socket, connected, () => visible);
  const closing = useClosing(socket, status);
  const chat = [...desk.chats.values()].at(-1);
  const { dispatch } = desk;
  const unread = chat?.unread ?? 0;
  useEffect(() => onUnread(unread), [unread]); // eslint-disable-line react-hooks/exhaustive-deps
  useEffect(() => {
    if (visible && chat) dispatch({ type: "read", threadId: chat.thread_id });
  }, [visible, chat?.thread_id, dispatch]); // eslint-disable-line react-hooks/exhaustive-deps

  return (
    <>
      <header className="bar">
        {account}
        <Connection state={status} text={closing} />
      </header>
      <p className="alert" role="alert">
        {desk.problem}
      </p>
      {desk.loaded && (!chat || chat.status === "ended") && (
        <form
          className="start"
          onSubmit={(event) => {
            event.preventDefault();
            const form = event.currentTarget;
            const topic = String(new FormData(form).get("topic"));
            void desk.attempt(async () => {
              const conversation = await session.start(topic);
              if (chat) dispatch({ type: "gone", threadId: chat.thread_id });
              dispatch({ type: "changed", conversation });
              form.reset();
            });
          }}
        >
          <label htmlFor="topic">What is it about?</label>
          <div className="row">
            <input id="topic" name="topic" maxLength={200} required autoComplete="off" placeholder="My invoice" />
            <button className="primary">Start chat</button>
          </div>
        </form>
      )}
      {chat ? (
        <Conversation chat={chat} desk={desk} session={session} socket={socket} />
      ) : (
        <p className="nothing">Hello! Ask us anything: a member of our team will answer here.</p>
      )}
    </>
  );
}
