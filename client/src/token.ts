/** An access token (JWT), or a promise of one. Called before every attempt at which the last one is no longer good. */
export type GetToken = () => string | Promise<string>;

/** Milliseconds before its end at which a token counts as over. */
const SKEW = 10_000;

/** Asks for one token at a time, and keeps it until shortly before it ends. */
export class Tokens {
  #token: string | undefined;
  #asking: Promise<string> | undefined;

  constructor(private readonly getToken: GetToken) {}

  async get(): Promise<string> {
    if (this.#token !== undefined && Date.now() < endOf(this.#token) - SKEW) return this.#token;
    return this.fresh();
  }

  /** A new token; who asks while one is under way gets the same. */
  fresh(): Promise<string> {
    this.#asking ??= Promise.resolve()
      .then(this.getToken)
      .then((token) => (this.#token = token))
      .finally(() => (this.#asking = undefined));
    return this.#asking;
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
