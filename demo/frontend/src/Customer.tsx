import { useEffect } from "react";
import { useSocket } from "realtime-sockets/react";
import { useDesk, type Desk } from "./chats";
import { Connection, Outage, useClosing, useStale } from "./connection";
import { Conversation, useKeptFocus } from "./Conversation";
import { Loading, Problem, type SideProps } from "./parts";
import type { Session } from "./api";

/** The customer's side: one chat at a time, like the chat window of a shop. */
export function CustomerWidget({ session, visible, onUnread, account }: SideProps) {
  const { socket, status, connected } = useSocket("desk");
  const desk = useDesk(session, socket, connected, () => visible);
  const closing = useClosing(socket, status);
  const stale = useStale(status);
  const chat = [...desk.chats.values()].at(-1);
  const { dispatch } = desk;
  const unread = chat?.unread ?? 0;
  useEffect(() => onUnread(unread), [unread]); // eslint-disable-line react-hooks/exhaustive-deps
  useEffect(() => {
    if (visible && chat) dispatch({ type: "read", threadId: chat.thread_id });
  }, [visible, chat?.thread_id, dispatch]); // eslint-disable-line react-hooks/exhaustive-deps
  const focus = useKeptFocus<HTMLDivElement>(chat?.thread_id, "textarea");
  const start = <StartForm desk={desk} session={session} previous={chat?.thread_id} />;

  return (
    <>
      <header className="bar">
        {account}
        <Connection state={status} text={closing} />
      </header>
      {stale && <Outage socket={socket} status={status} reason={closing} />}
      <Problem text={desk.problem} onClose={desk.dismissProblem} />
      <div className="body" data-stale={stale || undefined} {...focus}>
        {chat && <Conversation key={chat.thread_id} chat={chat} desk={desk} session={session} socket={socket} after={start} />}
        {!chat && !desk.loaded && <Loading />}
        {!chat && desk.loaded && (
          <>
            <p className="nothing">Hello! Ask us anything: a member of our team will answer here.</p>
            {start}
          </>
        )}
      </div>
    </>
  );
}

function StartForm({ desk, session, previous }: { desk: Desk; session: Session; previous: string | undefined }) {
  return (
    <form
      className="start"
      onSubmit={(event) => {
        event.preventDefault();
        const topic = String(new FormData(event.currentTarget).get("topic"));
        void desk.attempt(async () => {
          const conversation = await session.start(topic);
          if (previous !== undefined) desk.dispatch({ type: "gone", threadId: previous });
          desk.dispatch({ type: "changed", conversation });
        }, "start");
      }}
    >
      <label htmlFor="topic">What is it about?</label>
      <div className="row">
        <input id="topic" name="topic" maxLength={200} required autoComplete="off" placeholder="My invoice" />
        <button className="primary">Start chat</button>
      </div>
    </form>
  );
}
