// Generated from the server's catalogue by `make docs`. `python manage.py generateclient` generates the types of a
// product's own events, which merge with these interfaces.

/** Server to client. An event that a backbone publishes may have further fields. */
export interface ServerEvents {
  /** The frame with this `id` took effect. `data` depends on the event. */
  "ack": Record<string, never>;
  /** The attendant chose to be away, or has sent no heartbeat for `AWAY_AFTER`. */
  "attendant:away": { user_id: string; name: string; status: string; since: string };
  /** The attendant logged out, or did not come back within the grace period. */
  "attendant:offline": { user_id: string; name: string; status: string; since: string };
  /** The attendant is available. */
  "attendant:online": { user_id: string; name: string; status: string; since: string };
  /** The token expires soon: send `auth:refresh` with a fresh one. */
  "auth:expiring": { expires_at: string };
  /** An attendant accepted a customer's chat. The customer `user_id` is granted the thread, and gets the event too. */
  "chat:accepted": { thread_id: string; attendant_id: string; user_id?: string | null; [field: string]: unknown };
  /** A chat has ended. */
  "chat:ended": { thread_id: string; [field: string]: unknown };
  /** The first frame of a connection: its user, and the rooms that it has joined, each with the offset of its end. */
  "connection:ready": { connection_id: string; namespace: string; user_id: string; role: string; heartbeat_interval: number; expires_at: string; rooms: Record<string, string>; limits?: { frame_bytes: number; rate: number; burst: number; rooms: number } };
  /** The customer did not come back within the grace period, or may not see the thread any more. Only with `CUSTOMER_PRESENCE`. */
  "customer:offline": { thread_id: string; user_id: string; name: string; since: string };
  /** The customer has opened a page. Only with `CUSTOMER_PRESENCE`. */
  "customer:online": { thread_id: string; user_id: string; name: string; since: string };
  /** The customers who are there, of one thread. Replaces the previous state. Only with `CUSTOMER_PRESENCE`. */
  "customer:state": { thread_id: string; customers: ({ user_id: string; name: string; since: string })[]; offset: string };
  /** A frame was refused; the connection stays open. `rate_limited` also has `retry_after` (seconds). */
  "error": { code: string; message: string };
  /** All members of a group, the receiver and users in their grace period included. Replaces the previous state. */
  "presence:state": { group: string; members: ({ user_id: string; name: string; status: string; since: string })[]; total: number; offset: string };
  /** An item was added to the queue. */
  "queue:new": { group?: string; item_id: string; [field: string]: unknown };
  /** An attendant took an item from the queue. */
  "queue:taken": { group?: string; item_id: string; [field: string]: unknown };
  /** The queue changed in another way: refetch it. */
  "queue:updated": { group?: string; [field: string]: unknown };
  /** Publications in this room may have been missed: refetch its data. New publications follow. */
  "room:gap": { room: string; reason: string };
  /** The connection is no longer in this room. */
  "room:left": { room: string; reason: string };
  /** The position of a user's cursor. */
  "thread:cursor": { thread_id: string; user_id: string; namespace: string; name: string; position: unknown };
  /** A message was stored in a thread. */
  "thread:message": { thread_id: string; message_id: string; [field: string]: unknown };
  /** A user started or stopped typing. Drop a typist after 12 s without another event. */
  "thread:typing": { thread_id: string; user_id: string; namespace: string; name: string; typing: boolean };
  /** A notification for one user, in every tab. It goes to the hub's user unless `namespaces` says otherwise. */
  "user:notification": { user_id: string; [field: string]: unknown };
}

/** Client to server. */
export interface ClientEvents {
  /** Replace the token with a fresh one, so that the connection outlives the old one. */
  "auth:refresh": { token: string };
  /** Show the position of the user's cursor. */
  "cursor:move": { thread_id: string | number; position: unknown };
  /** Keep the connection and the user's presence alive. */
  "heartbeat": Record<string, never>;
  /** Enter a room. */
  "join": { room: string; since?: string | null };
  /** Enter a thread's room. */
  "join:thread": { thread_id: string | number; since?: string | null };
  /** Leave a room. */
  "leave": { room: string };
  /** Leave a thread's room. */
  "leave:thread": { thread_id: string | number };
  /** The user is away, until `presence:online`. */
  "presence:away": Record<string, never>;
  /** The user logs out: this connection ends without a grace period. */
  "presence:offline": Record<string, never>;
  /** The user is available (again). */
  "presence:online": Record<string, never>;
  /** Enter rooms again after a reconnect, and recover the missed publications. */
  "resume": { rooms: Record<string, string> };
  /** Show that the user is typing; repeat at least every 5 seconds while it lasts. */
  "typing:start": { thread_id: string | number };
  /** Show that the user has stopped typing. */
  "typing:stop": { thread_id: string | number };
}

/** The data of each client event's acknowledgement. */
export interface Acks {
  "auth:refresh": { expires_at: string };
  "cursor:move": Record<string, never>;
  "heartbeat": Record<string, never>;
  "join": { room: string; offset: string; recovered?: boolean; missed?: number };
  "join:thread": { room: string; offset: string; recovered?: boolean; missed?: number };
  "leave": { room: string };
  "leave:thread": { room: string };
  "presence:away": Record<string, never>;
  "presence:offline": Record<string, never>;
  "presence:online": Record<string, never>;
  "resume": { rooms: Record<string, { recovered: boolean; offset: string; missed: number } | { error: string }> };
  "typing:start": Record<string, never>;
  "typing:stop": Record<string, never>;
}

export type ErrorCode = "forbidden" | "internal" | "invalid_envelope" | "invalid_json" | "invalid_payload" | "limit_exceeded" | "not_in_room" | "rate_limited" | "unavailable" | "unknown_event";

/** The reasons for which the server closes a connection, by close code. */
export const CLOSE_REASONS = {
  1000: "normal",
  1002: "protocol error",
  1007: "invalid UTF-8",
  1009: "frame too large",
  1011: "internal error",
  1012: "server restarting",
  4400: "too many invalid frames",
  4401: "token expired",
  4403: "revoked",
  4408: "silent for too long",
  4409: "replaced by a newer connection",
  4413: "too slow",
  4429: "rate limit exceeded",
} as const;
