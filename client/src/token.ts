import { SocketError } from "./calls.js";

/**
 * An access token (JWT), or a promise of one. Called before every attempt at which the last one is no longer good. When it
 * throws it is asked again later, but for `SocketError("forbidden", …)`: nobody is logged in, the socket is `denied`.
 */
export type GetToken = () => string | Promise<string>;

/** Milliseconds before its end at which a token counts as over. */
const SKEW = 10_000;

/** Asks for one token at a time, and keeps it until shortly before it ends. */
export class Tokens {
  #token: string | undefined;
  #asking: Promise<string> | undefined;

  constructor(
    private readonly getToken: GetToken,
    /** Milliseconds after which an answer is not waited for any more. */
    private readonly patience: number,
  ) {}

  async get(): Promise<string> {
    if (this.#token !== undefined && Date.now() < endOf(this.#token) - SKEW) return this.#token;
    return this.fresh();
  }

  /** A new token; who asks while one is under way gets the same. */
  fresh(): Promise<string> {
    this.#asking ??= this.#ask().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  async #ask(): Promise<string> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const patience = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new SocketError("timeout", `no token within ${this.patience} ms`)), this.patience);
    });
    try {
      return (this.#token = await Promise.race([(async () => this.getToken())(), patience]));
    } finally {
      clearTimeout(timer);
    }
  }

  forget(): void {
    this.#token = undefined;
  }
}

/** When a token ends, in milliseconds since the epoch; 0 when it does not say. */
export function endOf(token: string): number {
  try {
    const payload = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const claims: unknown = JSON.parse(atob(payload));
    if (typeof claims === "object" && claims !== null && "exp" in claims && typeof claims.exp === "number") {
      return claims.exp * 1000;
    }
  } catch {
    // Not a JWT that we can read: the server will say what it thinks of it.
  }
  return 0;
}
