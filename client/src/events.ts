// Generated from the server's catalogue by `make docs`. A product's own events are generated likewise
// (`python manage.py generateclient`), or come in by declaration merging:
//
//   declare module "realtime-sockets" {
//     interface ServerEvents { "ticket:opened": { ticket_id: string } }
//   }

/** Server to client. What a backbone publishes may have further fields. */
export interface ServerEvents {
  /** Your frame with this `id` took effect. `data` depends on the event. */
  "ack": Record<string, never>;
  /** The attendant chose to be away, or has sent no heartbeat for `AWAY_AFTER`. */
  "attendant:away": { user_id: string; name: string; status: string; since: string };
  /** The attendant logged out, or did not come back within the grace period. */
  "attendant:offline": { user_id: string; name: string; status: string; since: string };
  /** The attendant is available. */
  "attendant:online": { user_id: string; name: string; status: string; since: string };
  /** The token ends soon: send `auth:refresh` with a fresh one. */
  "auth:expiring": { expires_at: string };
  /** An attendant took a customer's chat. With `user_id`, that customer is granted the thread and told in person. */
  "chat:accepted": { thread_id: string; attendant_id: string; user_id?: string; [field: string]: unknown };
  /** A chat is over. */
  "chat:ended": { thread_id: string; [field: string]: unknown };
  /** The first frame: who you are, what to keep, and the end of each room you are in. */
  "connection:ready": { connection_id: string; namespace: string; user_id: string; role: string; heartbeat_interval: number; expires_at: string; rooms: Record<string, string> };
  /** The customer did not come back within the grace period, or may not see the thread any more. Only with `CUSTOMER_PRESENCE`. */
  "customer:offline": { thread_id: string; user_id: string; name: string; since: string };
  /** The customer has opened a page. Only with `CUSTOMER_PRESENCE`. */
  "customer:online": { thread_id: string; user_id: string; name: string; since: string };
  /** The customers who are there, of one thread. Replaces the previous state. Only with `CUSTOMER_PRESENCE`. */
  "customer:state": { thread_id: string; customers: ({ user_id: string; name: string; since: string })[]; offset: string };
  /** Your frame was refused; the connection stays open. `rate_limited` also has `retry_after` (seconds). */
  "error": { code: string; message: string };
  /** All members of a group, the receiver and users in their grace period included. Replaces the previous state. */
  "presence:state": { group: string; members: ({ user_id: string; name: string; status: string; since: string })[]; total: number; offset: string };
  /** Something waits. */
  "queue:new": { group?: string; item_id: string; [field: string]: unknown };
  /** An attendant took it. */
  "queue:taken": { group?: string; item_id: string; [field: string]: unknown };
  /** The queue changed in some other way: refetch it. */
  "queue:updated": { group?: string; [field: string]: unknown };
  /** Something in this room may have been missed: refetch. You are live again from here. */
  "room:gap": { room: string; reason: string };
  /** You are not in this room any more. */
  "room:left": { room: string; reason: string };
  /** Where somebody is reading or pointing. */
  "thread:cursor": { thread_id: string; user_id: string; namespace: string; name: string; position: unknown };
  /** A message was stored in a thread. */
  "thread:message": { thread_id: string; message_id: string; [field: string]: unknown };
  /** Somebody started or stopped typing. Forget a typist after 12 s without news. */
  "thread:typing": { thread_id: string; user_id: string; namespace: string; name: string; typing: boolean };
  /** Something for one user, in every tab of theirs. The hub's user, unless `namespaces` says otherwise. */
  "user:notification": { user_id: string; [field: string]: unknown };
}

/** Client to server. */
export interface ClientEvents {
  /** Go on with a fresh token instead of being closed when the old one expires. */
  "auth:refresh": { token: string };
  /** The user's cursor is here now. */
  "cursor:move": { thread_id: string | number; position: unknown };
  /** The client is there: keeps the connection and the user's presence alive. */
  "heartbeat": Record<string, never>;
  /** Enter a room. */
  "join": { room: string; since?: string };
  /** Enter a thread's room. */
  "join:thread": { thread_id: string | number; since?: string };
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
  /** Enter rooms again after a reconnect, with what was missed. */
  "resume": { rooms: Record<string, string> };
  /** The user is typing; to be repeated at least every 5 seconds while it lasts. */
  "typing:start": { thread_id: string | number };
  /** The user stopped typing. */
  "typing:stop": { thread_id: string | number };
}

/** What the acknowledgement of a client's event says. */
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

/** Why the server closes a connection. */
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
