import { useEffect, useState } from "react";
import { usePresence, useSocket, useSocketEvent, useThread, type Member } from "realtime-sockets/react";
import type { Socket } from "realtime-sockets";
import type { Conversation as Fields, Message } from "./api";
import { useDesk, type Chat, type Desk } from "./chats";
import { Connection, Outage, useClosing, useStale } from "./connection";
import { Conversation, useFetched, useKeptFocus } from "./Conversation";
import { Avatar, Problem, Waiting, type SideProps } from "./parts";
import { useToasts } from "./toasts";

/** The team's side: the team, the queue, and several chats at once. */
export function AttendantConsole({ session, visible, onUnread, account }: SideProps) {
  const { socket, status, connected } = useSocket("desk");
  const [selected, setSelected] = useState<string>();
  const desk = useDesk(session, socket, connected, (id) => visible && id === selected);
  const members = usePresence(socket, "attendants");
  const { show, dismiss, toasts } = useToasts();
  const closing = useClosing(socket, status);
  const stale = useStale(status);
  const { dispatch } = desk;

  const chats = [...desk.chats.values()];
  const waiting = chats.filter((chat) => chat.status === "waiting");
  const mine = chats.filter((chat) => chat.status !== "waiting");
  const current = selected === undefined ? undefined : desk.chats.get(selected);
  const unread = mine.reduce((sum, chat) => sum + chat.unread, 0);
  useEffect(() => onUnread(unread), [unread]); // eslint-disable-line react-hooks/exhaustive-deps
  useEffect(() => {
    if (visible && selected !== undefined) dispatch({ type: "read", threadId: selected });
  }, [visible, selected, dispatch]);
  useEffect(
    () => () => {
      if (socket.status === "connected") socket.emit("presence:offline", {}); // announced at once, without the grace period
    },
    [socket],
  );

  const take = (threadId: string) =>
    desk.attempt(async () => {
      dispatch({ type: "changed", conversation: await session.take(threadId) });
      setSelected(threadId);
    }, `take ${threadId}`);
  const open = (threadId: string) => {
    if (current?.status === "ended" && current.thread_id !== threadId) dispatch({ type: "gone", threadId: current.thread_id });
    dismiss(threadId);
    setSelected(threadId);
  };

  const close = (threadId: string) => {
    dispatch({ type: "gone", threadId });
    setSelected(undefined);
  };

  useSocketEvent(socket, "queue:new", ({ item_id, conversation }) => {
    const { topic, customer } = conversation as Fields;
    dispatch({ type: "changed", conversation: conversation as Fields });
    show({ key: item_id, title: customer.name, text: topic, label: "Take it", act: () => void take(item_id) });
  });
  useSocketEvent(socket, "queue:taken", ({ item_id, attendant_id }) => {
    dismiss(item_id);
    if (attendant_id !== session.me) dispatch({ type: "gone", threadId: item_id });
    else void desk.refetch(); // perhaps accepted in another tab
  });
  useSocketEvent(socket, "queue:updated", ({ item_id }) => {
    if (typeof item_id === "string") dismiss(item_id);
    void desk.refetch();
  });
  useSocketEvent(socket, "thread:message", (data) => {
    const { thread_id, author, body } = data as unknown as Message;
    if (author.user_id === session.me || thread_id === selected) return;
    show({ key: thread_id, title: author.name, text: body, label: "Show", act: () => open(thread_id) });
  });
  useSocketEvent(socket, "user:notification", ({ kind, by, conversation }) => {
    if (kind !== "transferred") return;
    const { thread_id, topic } = conversation as Fields;
    dispatch({ type: "changed", conversation: conversation as Fields, unread: thread_id !== selected });
    show({ key: thread_id, title: `From ${String(by)}`, text: topic, label: "Show", act: () => open(thread_id) });
  });

  const focus = useKeptFocus<HTMLDivElement>(current === undefined, ".side");
  const empty = (text: string) => (desk.loaded ? text : "Loading…");

  return (
    <>
      <header className="bar">
        {account}
        <StatusSwitch
          socket={socket}
          me={connected ? members.find(({ user_id }) => user_id === session.me) : undefined}
          desk={desk}
        />
        <Connection state={status} text={closing} />
      </header>
      {stale && <Outage socket={socket} status={status} reason={closing} />}
      <Problem text={desk.problem} onClose={desk.dismissProblem} />
      <div className="body columns" data-open={current !== undefined} data-stale={stale || undefined} {...focus}>
        <div className="side" tabIndex={-1}>
          <h3 id="queue">Queue {waiting.length > 0 && <span className="badge">{waiting.length}</span>}</h3>
          <ul aria-labelledby="queue" aria-label="Queue" data-empty={empty("The queue is empty.")} onKeyDown={moveFocus}>
            {waiting.map(({ thread_id, topic, customer, created_at }) => (
              <li key={thread_id}>
                <Avatar name={customer.name} />
                <span className="about">
                  <span id={`topic-${thread_id}`} className="topic" title={topic}>
                    {topic}
                  </span>
                  <small>
                    <Waiting since={created_at} /> · {customer.name}
                  </small>
                </span>
                <button type="button" className="primary" aria-describedby={`topic-${thread_id}`} onClick={() => void take(thread_id)}>
                  Take
                </button>
              </li>
            ))}
          </ul>
          <h3 id="chats">My chats</h3>
          <ul aria-label="My chats" data-empty={empty("None yet.")} onKeyDown={moveFocus}>
            {mine.map((chat) => (
              <li key={chat.thread_id}>
                <button
                  type="button"
                  className="open"
                  aria-current={chat.thread_id === selected}
                  onClick={() => open(chat.thread_id)}
                >
                  <Avatar name={chat.customer.name} />
                  <span className="about">
                    {chat.topic}
                    {chat.status === "open" ? <Preview chat={chat} desk={desk} socket={socket} /> : <small>ended</small>}
                  </span>
                  {chat.unread > 0 && (
                    <span className="badge" aria-label={`${chat.unread} unread`}>
                      {chat.unread}
                    </span>
                  )}
                </button>
              </li>
            ))}
          </ul>
          <h3 id="team">Team</h3>
          <ul className="team" aria-label="Team" data-empty={connected ? "No attendant is online." : "Not known without a connection."}>
            {members.map(({ user_id, name, status }) => (
              <li key={user_id} data-status={status}>
                <Avatar name={name} status={status} />
                <span className="about">
                  {user_id === session.me ? `${name} (me)` : name}
                  <small>{status}</small>
                </span>
              </li>
            ))}
          </ul>
        </div>
        {current ? (
          <Conversation
            key={current.thread_id}
            chat={current}
            desk={desk}
            session={session}
            socket={socket}
            autoFocus
            colleagues={members.filter(({ user_id }) => user_id !== session.me)}
            onBack={() => setSelected(undefined)}
            after={
              <p className="over">
                This chat has ended.
                <button type="button" onClick={() => close(current.thread_id)}>
                  Close
                </button>
              </p>
            }
          />
        ) : (
          <p className="nothing">{waiting.length > 0 ? "Take a chat from the queue." : "New chats appear in the queue."}</p>
        )}
      </div>
      {toasts}
    </>
  );
}

/** Stays in the chat's room while another chat is shown: the last message, or a typing indicator. */
function Preview({ chat, desk, socket }: { chat: Chat; desk: Desk; socket: Socket }) {
  const { joined, typists } = useThread(socket, chat.thread_id);
  useFetched(desk, chat.thread_id, joined);
  const last = chat.messages.filter(({ is_note }) => !is_note).at(-1);
  return typists.length > 0 ? <small className="types">typing…</small> : <small>{last?.body ?? chat.customer.name}</small>;
}

function StatusSwitch({ socket, me, desk }: { socket: Socket; me: Member | undefined; desk: Desk }) {
  return (
    <fieldset className="switch" disabled={me === undefined}>
      <legend className="hidden">My status</legend>
      {(["online", "away"] as const).map((status) => (
        <button
          key={status}
          type="button"
          aria-pressed={me?.status === status}
          data-status={status}
          onClick={() => void desk.attempt(() => socket.call(`presence:${status}`, {}))}
        >
          {status === "online" ? "Online" : "Away"}
        </button>
      ))}
    </fieldset>
  );
}

/** The up and down keys move through a list of buttons. */
function moveFocus(event: React.KeyboardEvent<HTMLElement>): void {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step === undefined) return;
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  buttons[buttons.indexOf(document.activeElement as HTMLButtonElement) + step]?.focus();
  event.preventDefault();
}
