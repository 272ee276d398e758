// @vitest-environment jsdom
/** The recipes of README.md, "With TanStack Query", with the real library. */

import { QueryClient, QueryClientProvider, useQuery, useQueryClient } from "@tanstack/react-query";
import { act, cleanup, render } from "@testing-library/react";
import { StrictMode, useState, type ReactNode } from "react";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { ServerEvents } from "../src/index.js";
import { SocketProvider, useGap, useSocket, useSocketEvent, useThread } from "../src/react.js";
import { FakeWebSocket, token } from "./fake.js";

type Message = ServerEvents["thread:message"];

/** The backbone: each call gets the messages stored at its time, once the test releases the answer. */
const backbone = {
  stored: [] as string[],
  calls: [] as (() => void)[],
  fetch: <T,>(make: (stored: string[]) => T): Promise<T> => {
    const found = make([...backbone.stored]);
    return new Promise((resolve) => backbone.calls.push(() => resolve(found)));
  },
};

const fetchMessages = (threadId: string): Promise<Message[]> =>
  backbone.fetch((stored) => stored.map((message_id) => ({ thread_id: threadId, message_id })));
const fetchQueue = (): Promise<string[]> => backbone.fetch((stored) => stored);

/** Once on the page. */
function Live(): ReactNode {
  const { socket } = useSocket("hub");
  const queryClient = useQueryClient();
  const refetch = async (room = ""): Promise<void> => {
    const queryKey = room.split(":");
    await queryClient.cancelQueries({ queryKey }); // a fetch in progress may have read too early
    await queryClient.invalidateQueries({ queryKey });
  };
  useGap(socket, ({ room }) => void refetch(room));
  useSocketEvent(socket, "queue:new", (_, { room }) => void refetch(room));
  return null;
}

function Queue(): ReactNode {
  return useQuery({ queryKey: ["presence", "attendants", "queue"], queryFn: fetchQueue }).data?.join();
}

function Chat({ threadId }: { threadId: string }): ReactNode {
  const { socket } = useSocket("hub");
  const { joined, refused } = useThread(socket, threadId);
  const fetched = useQuery({ queryKey: ["thread", threadId], queryFn: () => fetchMessages(threadId), enabled: joined });
  const [live, setLive] = useState<Message[]>([]);
  useSocketEvent(socket, "thread:message", (message) => {
    if (message.thread_id === threadId) setLive((known) => [...known, message]);
  });
  if (refused !== undefined) return `no: ${refused}`;
  const all = new Map([...(fetched.data ?? []), ...live].map((message) => [message.message_id, message]));
  return [...all.keys()].join();
}

const soon = (milliseconds = 1): Promise<void> =>
  act(async () => {
    await vi.advanceTimersByTimeAsync(milliseconds);
  });

/** Answers all calls. */
async function answered(): Promise<void> {
  await act(async () => {
    for (const call of backbone.calls.splice(0)) call();
  });
  await soon();
}

function shown(page: ReactNode): HTMLElement {
  const hub = {
    url: "ws://server/hub/",
    getToken: () => token(),
    WebSocket: FakeWebSocket as unknown as typeof WebSocket,
    random: () => 1,
  };
  return render(
    <StrictMode>
      <QueryClientProvider client={new QueryClient()}>
        <SocketProvider namespaces={{ hub }}>
          <Live />
          {page}
        </SocketProvider>
      </QueryClientProvider>
    </StrictMode>,
  ).container;
}

beforeEach(() => {
  vi.useFakeTimers({ now: new Date("2026-01-01T00:00:00Z") });
  FakeWebSocket.reset();
  backbone.stored = [];
  backbone.calls = [];
});

afterEach(async () => {
  cleanup();
  await soon(1001);
  vi.useRealTimers();
});

test("a chat shows earlier messages, and those that arrive during the fetch, once", async () => {
  backbone.stored = ["1"];
  const chat = shown(<Chat threadId="42" />);
  expect(backbone.calls).toEqual([]); // not before the client is in the thread
  await soon();
  act(() => FakeWebSocket.last.message("42", "201", "2"));
  act(() => FakeWebSocket.last.message("43", "201", "of another"));
  await answered();
  expect(chat.textContent).toBe("1,2");
  act(() => FakeWebSocket.last.message("42", "202", "3"));
  expect(chat.textContent).toBe("1,2,3");
});

test("a gap refetches the queries of its room, and no other", async () => {
  const chat = shown([<Chat key="42" threadId="42" />, <Chat key="43" threadId="43" />]);
  await soon();
  await answered();
  backbone.stored = ["1", "2"];
  act(() => FakeWebSocket.last.say("room:gap", { room: "thread:42", reason: "lost" }));
  await soon(2000);
  expect(backbone.calls).toHaveLength(1);
  await answered();
  expect(chat.textContent).toBe("1,2");
});

test("a list that changes during its first fetch is fetched again", async () => {
  const queue = shown(<Queue />);
  await soon();
  backbone.stored = ["first"];
  act(() => FakeWebSocket.last.say("queue:new", { item_id: "first" }, { room: "presence:attendants", offset: "1" }));
  await soon();
  await answered();
  expect(queue.textContent).toBe("first");
});

test("a refused chat shows the refusal, and fetches nothing", async () => {
  FakeWebSocket.answers = { "join:thread": { code: "forbidden", message: "not allowed" } };
  const chat = shown(<Chat threadId="42" />);
  await soon();
  expect([chat.textContent, backbone.calls]).toEqual(["no: forbidden", []]);
});
