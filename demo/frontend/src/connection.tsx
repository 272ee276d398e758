/** The state of a connection, as the user sees it. */

import { useEffect, useState } from "react";
import { CLOSE_REASONS, type Socket, type Status } from "realtime-sockets";
import { useNow } from "./parts";

const STATES: Record<Status, string> = {
  connecting: "connecting",
  connected: "connected",
  offline: "reconnecting…",
  denied: "no access",
  stopped: "signed off",
};

/** The status of the connection, in words. */
export function Connection({ state, text }: { state: Status; text?: string | undefined }) {
  return (
    <output className="connection" data-state={state}>
      {text ?? STATES[state]}
    </output>
  );
}

/** The server's reason for closing a connection for good, if it sent one. */
export function useClosing(socket: Socket, status: Status): string | undefined {
  const [reason, setReason] = useState<string>();
  useEffect(
    () =>
      socket.when("closed", ({ code }) =>
        setReason(code === 4403 ? "disconnected by an operator" : CLOSE_REASONS[code as keyof typeof CLOSE_REASONS]),
      ),
    [socket],
  );
  return status === "denied" ? reason : undefined;
}

/** Whether what is shown may be out of date: from the loss of the connection until the next one is ready. */
export function useStale(status: Status): boolean {
  const [known, setKnown] = useState<"new" | "up" | "down">("new");
  const now =
    status === "connected" ? "up" : status === "connecting" || (status === "stopped" && known === "new") ? known : "down";
  if (now !== known) setKnown(now);
  return now === "down";
}

/** Tells that there is no connection, and when the next attempt follows. */
export function Outage({ socket, status, reason }: { socket: Socket; status: Status; reason: string | undefined }) {
  const isOver = status === "denied" || status === "stopped";
  return (
    <div className="outage">
      <p role="status">
        <strong>{isOver ? `No connection: ${reason ?? STATES[status]}.` : "You are offline."}</strong> This may be out of date.
      </p>
      {isOver ? (
        <button type="button" onClick={() => socket.connect()}>
          Connect again
        </button>
      ) : (
        <NextAttempt socket={socket} />
      )}
    </div>
  );
}

/** Outside the live region: a screen reader does not read every second. */
function NextAttempt({ socket }: { socket: Socket }) {
  const now = useNow();
  const seconds = Math.ceil(((socket.nextAttempt ?? now) - now) / 1000);
  return (
    <span className="attempt" role="timer">
      {seconds > 0 ? `Next attempt in ${seconds} s` : "Connecting…"}
    </span>
  );
}
