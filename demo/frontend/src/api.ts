/** The desk's HTTP API. Clients write here; the socket delivers the events that the backbone then publishes. */

export interface Person {
  user_id: string;
  name: string;
}

export interface Message {
  thread_id: string;
  message_id: string;
  author: Person;
  body: string;
  /** It records what its author did: joined, transferred or ended the chat. */
  is_note: boolean;
  created_at: string;
}

export interface Conversation {
  thread_id: string;
  topic: string;
  status: "waiting" | "open" | "ended";
  customer: Person;
  attendant: Person | null;
  created_at: string;
}

/** The server refused a request. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    body: { detail?: string },
  ) {
    super(body.detail ?? (Object.values(body).flat().join(" ") || `The server answered ${status}.`));
  }
}

/** Milliseconds by which the server's clock is ahead of this one, to the second. */
let ahead = 0;

/** The server's time, in milliseconds since the epoch: waiting times are right although this clock may be wrong. */
export function serverNow(): number {
  return Date.now() + ahead;
}

async function http<Answer>(method: string, path: string, token?: string, body?: object): Promise<Answer> {
  const response = await fetch(path, {
    method,
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body ? JSON.stringify(body) : null,
  });
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) ahead = date - Date.now();
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new HttpError(response.status, answer);
  return answer;
}

interface TokenPair {
  access: string;
  refresh: string;
}

/** A signed-in user: the tokens, and the API that uses them. */
export class Session {
  #fresh = true;
  #refreshing: Promise<void> | undefined;

  private constructor(
    private tokens: TokenPair,
    private readonly signInAgain: () => Promise<TokenPair>,
  ) {}

  static async signIn(username: string, password: string): Promise<Session> {
    const signIn = () => http<TokenPair>("POST", "/demo/token/", undefined, { username, password });
    return new Session(await signIn(), signIn);
  }

  /** A token for the socket, which calls this only when its last token is about to expire. */
  getToken = async (): Promise<string> => {
    if (!this.#fresh) await this.#refresh();
    this.#fresh = false;
    return this.tokens.access;
  };

  /** The user's id, from the token. */
  get me(): string {
    const claims: { user_id: string } = JSON.parse(atob(this.tokens.access.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/")));
    return String(claims.user_id);
  }

  conversations = async (): Promise<Conversation[]> =>
    (await this.#call<{ conversations: Conversation[] }>("GET", "conversations/")).conversations;
  conversation = (id: string): Promise<Conversation & { messages: Message[] }> => this.#call("GET", `conversations/${id}/`);
  start = (topic: string): Promise<Conversation> => this.#call("POST", "conversations/", { topic });
  take = (id: string): Promise<Conversation> => this.#call("POST", `conversations/${id}/take/`);
  transfer = (id: string, colleague: string): Promise<Conversation> =>
    this.#call("POST", `conversations/${id}/transfer/`, { attendant_id: colleague });
  end = (id: string): Promise<Conversation> => this.#call("POST", `conversations/${id}/end/`);
  write = (id: string, body: string): Promise<Message> => this.#call("POST", `conversations/${id}/messages/`, { body });

  /** Concurrent calls share one request, because a refresh token is valid once. */
  #refresh(): Promise<void> {
    this.#refreshing ??= this.#renew().finally(() => (this.#refreshing = undefined));
    return this.#refreshing;
  }

  async #renew(): Promise<void> {
    const { refresh } = this.tokens;
    this.tokens = await http<TokenPair>("POST", "/demo/token/refresh/", undefined, { refresh }).catch((error: unknown) => {
      // The token has expired, or the answer with its successor was lost. A product asks for the password here.
      if (error instanceof HttpError && error.status === 401) return this.signInAgain();
      throw error;
    });
  }

  async #call<Answer>(method: string, path: string, body?: object): Promise<Answer> {
    try {
      return await http<Answer>(method, `/demo/${path}`, this.tokens.access, body);
    } catch (error) {
      if (!(error instanceof HttpError) || error.status !== 401) throw error;
      await this.#refresh();
      return http<Answer>(method, `/demo/${path}`, this.tokens.access, body);
    }
  }
}
