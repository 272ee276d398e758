import type { SocketError } from "./calls.js";
import type { Refusal } from "./verdict.js";

/**
 * `offline`: the connection is lost, and another attempt follows. `denied`: the server refused the client, and another
 * attempt would not change that. `stopped`: `disconnect()` was called, `connect()` was not, the server closed normally, or
 * `reconnectionAttempts` are used up.
 */
export type Status = "connecting" | "connected" | "offline" | "denied" | "stopped";

/** Publications in a room may have been missed: refetch its data. New publications follow. */
export interface Gap {
  room: string;
  reason: string;
}

/** The socket's own events, beside those of the server. */
export interface SocketEvents {
  /** The status has changed. */
  status: Status;
  /** An attempt was refused, and why; `status` shows whether another one follows. Reported before `denied`. */
  refused: Refusal;
  /**
   * Everything of the last user was discarded (token, offsets, waiting events, presence), because the socket is `stopped`
   * or `denied`, or because the server sees another user.
   */
  reset: { reason: "stopped" | "denied" | "user" };
  /** Publications in a room may have been missed: refetch its data. */
  gap: Gap;
  /** The client has entered a room, and receives what is published there from now on. */
  joined: { room: string };
  /** The server refused a room, or removed the client from it. */
  left: { room: string; reason: string };
  /** An established connection was closed; `status` shows whether another attempt follows. */
  closed: { code: number; reason: string };
  /** The members of a group have changed: see `presence()`. */
  presence: { group: string };
  /** The server refused an event of `emit()` or sent an invalid frame, or there is no token. */
  error: SocketError;
}
