export { Backoff, type BackoffOptions } from "./backoff.js";
export { SocketError } from "./calls.js";
export type { Handler, Where } from "./emitter.js";
export { consequence, type Consequence } from "./closing.js";
export * from "./events.js";
export type { Gap } from "./gaps.js";
export type { Member } from "./presence.js";
export { Socket, type SocketEvents, type SocketOptions, type Status } from "./socket.js";
export type { GetToken } from "./token.js";
