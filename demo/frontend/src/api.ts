/** The desk's HTTP API. What is written goes here; the socket carries what the backbone published about it. */

export interface Person {
  user_id: string;
  name: string;
}

export interface Message {
  thread_id: string;
  message_id: string;
  author: Person;
  body: string;
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

/** The server said no. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    body: { detail?: string },
  ) {
    super(body.detail ?? (Object.values(body).flat().join(" ") || `The server answered ${status}.`));
  }
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
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new HttpError(response.status, answer);
  return answer;
}

/** Somebody signed in: tokens, and the API with them. */
export class Session {
  #fresh = true;
  #refreshing: Promise<void> | undefined;

  private constructor(
    private access: string,
    private refreshToken: string,
  ) {}

  static async signIn(username: string, password: string): Promise<Session> {
    const { access, refresh } = await http<{ access: string; refresh: string }>("POST", "/demo/token/", undefined, {
      username,
      password,
    });
    return new Session(access, refresh);
  }

  /** A token for the socket, which asks only when its last one is used up. */
  getToken = async (): Promise<string> => {
    if (!this.#fresh) await this.#refresh();
    this.#fresh = false;
    return this.access;
  };

  /** Who this is, by the token. */
  get me(): string {
    const claims: { user_id: string } = JSON.parse(atob(this.access.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/")));
    return String(claims.user_id);
  }

  conversations = async (): Promise<Conversation[]> =>
    (await this.#call<{ conversations: Conversation[] }>("GET", "conversations/")).conversations;
  conversation = (id: string): Promise<Conversation & { messages: Message[] }> => this.#call("GET", `conversations/${id}/`);
  start = (topic: string): Promise<Conversation> => this.#call("POST", "conversations/", { topic });
  take = (id: string): Promise<Conversation> => this.#call("POST", `conversations/${id}/take/`);
  end = (id: string): Promise<Conversation> => this.#call("POST", `conversations/${id}/end/`);
  write = (id: string, body: string): Promise<Message> => this.#call("POST", `conversations/${id}/messages/`, { body });

  /** One at a time: a refresh token is good once. */
  #refresh(): Promise<void> {
    this.#refreshing ??= this.#renew().finally(() => (this.#refreshing = undefined));
    return this.#refreshing;
  }

  async #renew(): Promise<void> {
    const { access, refresh } = await http<{ access: string; refresh: string }>("POST", "/demo/token/refresh/", undefined, {
      refresh: this.refreshToken,
    });
    this.access = access;
    this.refreshToken = refresh;
  }

  async #call<Answer>(method: string, path: string, body?: object): Promise<Answer> {
    try {
      return await http<Answer>(method, `/demo/${path}`, this.access, body);
    } catch (error) {
      if (!(error instanceof HttpError) || error.status !== 401) throw error;
      await this.#refresh();
      return http<Answer>(method, `/demo/${path}`, this.access, body);
    }
  }
}
