/** What the socket uses of a `WebSocket`. That of browsers, Node, React Native and the package `ws` fit. */
export interface WebSocketLike {
  // `any`, because every platform has its own types of events.
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** A class of WebSockets. */
export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** What the socket uses of `fetch`. That of browsers, Node and React Native fit. */
export type FetchLike = (
  url: string,
  // `any`, because a platform without `fetch` may have no `AbortSignal` either.
  options: { headers: Record<string, string>; cache: "no-store"; signal: any },
) => Promise<{ readonly status: number; readonly headers: { get(name: string): string | null } }>;
