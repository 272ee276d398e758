import { SocketError } from "./calls.js";

/**
 * Returns an access token (JWT), or a promise of one. It is called before an attempt for which the last token is no longer
 * valid, and before a token expires. If it throws, the socket calls it again later, unless it throws
 * `SocketError("forbidden", …)` because no user is logged in: then the socket is `denied`.
 */
export type GetToken = () => string | Promise<string>;

/** Milliseconds before its expiry from which a token counts as expired. */
const SKEW = 10_000;

/** Requests one token at a time, and keeps it until shortly before it expires. */
export class Tokens {
  #token: string | undefined;
  #asking: Promise<string> | undefined;

  constructor(
    private readonly getToken: GetToken,
    /** Milliseconds after which a request for a token fails. */
    private readonly timeout: number,
  ) {}

  async get(): Promise<string> {
    if (this.#token !== undefined && Date.now() < endOf(this.#token) - SKEW) return this.#token;
    return this.fresh();
  }

  /** A new token; concurrent calls share one request. */
  fresh(): Promise<string> {
    this.#asking ??= this.#ask().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  async #ask(): Promise<string> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const expiry = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new SocketError("timeout", `no token within ${this.timeout} ms`)), this.timeout);
    });
    try {
      return (this.#token = await Promise.race([(async () => this.getToken())(), expiry]));
    } finally {
      clearTimeout(timer);
    }
  }

  forget(): void {
    this.#token = undefined;
  }
}

/** When a token expires, in milliseconds since the epoch; 0 if it cannot be read. */
export function endOf(token: string): number {
  try {
    const payload = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const claims: unknown = JSON.parse(atob(payload));
    if (typeof claims === "object" && claims !== null && "exp" in claims && typeof claims.exp === "number") {
      return claims.exp * 1000;
    }
  } catch {
    // Not a readable JWT: the server decides.
  }
  return 0;
}
