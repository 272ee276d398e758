/** What the client needs of a WebSocket: that of browsers, of Node, of React Native, or of `ws`. */
export interface WebSocketLike {
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** What the client needs of `fetch`. */
export type FetchLike = (
  url: string,
  init?: any,
) => Promise<{ status: number; headers: { get(name: string): string | null }; json(): Promise<unknown> }>;
