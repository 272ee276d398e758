import type { WebSocketLike } from "../src/index.js";

/** What is used of Node and `ws`, whose types are not installed. */
export interface Wire {
  destroy(): void;
  end(text: string): void;
}
export interface Request {
  url: string;
  headers: Record<string, string | undefined>;
}
export interface Response {
  writeHead(status: number, headers: object): Response;
  end(text?: string): void;
}
export interface Remote {
  on(event: string, handler: (data: { toString(): string }) => void): void;
  send(text: string): void;
  close(code: number, reason?: string): void;
  terminate(): void;
}
export interface Server {
  on(event: "upgrade", handler: (request: Request, wire: Wire, head: unknown) => void): void;
  listen(port: number, host: string, done: () => void): void;
  address(): { port: number };
  close(): void;
  closeAllConnections(): void;
}
interface Ws {
  WebSocketServer: new (options: object) => {
    handleUpgrade(request: Request, wire: Wire, head: unknown, done: (remote: Remote) => void): void;
  };
  WebSocket: new (url: string, protocols: string[]) => WebSocketLike;
}
interface Http {
  createServer(handler: (request: Request, response: Response) => void): Server;
}

const named: Record<"ws" | "http", string> = { ws: "ws", http: "node:http" };
export const { WebSocketServer, WebSocket } = (await import(/* @vite-ignore */ named.ws)) as Ws;
export const http = (await import(/* @vite-ignore */ named.http)) as Http;
