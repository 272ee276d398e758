import { SocketError } from "./calls.js";

/**
 * Returns an access token (JWT), or a promise of one. It is called before an attempt for which the last token is no longer
 * valid, and before a token expires. If it throws, the socket calls it again later, unless it throws
 * `SocketError("forbidden", …)` because no user is logged in: then the socket is `denied`. White space around a token is
 * ignored; anything else that cannot be a token is `denied`, too.
 */
export type GetToken = () => string | Promise<string>;

/** Milliseconds before its expiry from which a token counts as expired. */
const SKEW = 10_000;
/** The characters of a token. */
const TOKEN = /^[\w.+-]+$/;

/** Requests one token at a time, and keeps it until shortly before it expires. */
export class Tokens {
  /** The last one; before there is one, what is in no text. */
  #token = "\0";
  #asking: Promise<string> | undefined;
  readonly #getToken: GetToken;

  constructor(getToken: GetToken) {
    this.#getToken = getToken;
  }

  async get(): Promise<string> {
    return Date.now() < endOf(this.#token) - SKEW ? this.#token : this.fresh();
  }

  /** A new token; concurrent calls share one request. */
  fresh(): Promise<string> {
    return (this.#asking ??= this.#ask().finally(() => (this.#asking = undefined)));
  }

  /** A text of the server, which may quote the token, without it. */
  scrub(text: unknown): string {
    return String(text).replaceAll(this.#token, "…");
  }

  async #ask(): Promise<string> {
    const token = (await this.#getToken()) as Partial<string> | undefined;
    const text = token?.trim?.() ?? "";
    if (!TOKEN.test(text)) throw new SocketError("forbidden", "getToken() gave no token");
    return (this.#token = text);
  }
}

/** When a token expires, in milliseconds since the epoch; 0 if it cannot be read: then the server decides. */
export function endOf(token: string): number {
  try {
    const payload = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    return Number((JSON.parse(atob(payload)) as { exp?: unknown }).exp) * 1000 || 0;
  } catch {
    return 0;
  }
}
