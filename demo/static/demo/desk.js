/**
 * An attendant and a customer on one page, each with a session (HTTP) and a connection (WebSocket) of their own,
 * as if they sat at two machines.
 *
 * What is written goes to the backbone by HTTP, which stores and publishes it. The socket carries what was
 * published, typing and presence. After every connect a pane joins its room first and fetches second, so nothing
 * falls in between; what comes twice is known by its id.
 */

// --- HTTP: tokens and the desk's API -------------------------------------------------------------

class HttpError extends Error {
  constructor(status, body) {
    super(body.detail ?? (Object.values(body).flat().join(" ") || `The server answered ${status}.`));
    this.status = status;
  }
}

async function http(method, path, { token, body } = {}) {
  const response = await fetch(path, {
    method,
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body && JSON.stringify(body),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new HttpError(response.status, answer);
  return answer;
}

/** Somebody signed in: an access token that can be renewed, and the desk's API with it. */
class Session {
  static async signIn(username, password) {
    const { access, refresh } = await http("POST", "/demo/token/", { body: { username, password } });
    return Object.assign(new Session(), { access, refreshToken: refresh });
  }

  async refresh() {
    const { access } = await http("POST", "/token/refresh/", { body: { refresh: this.refreshToken } });
    this.access = access;
  }

  get = (path) => this.#call("GET", path);
  post = (path, body) => this.#call("POST", path, body);

  async #call(method, path, body) {
    try {
      return await http(method, `/demo/${path}`, { token: this.access, body });
    } catch (error) {
      if (error.status !== 401) throw error;
      await this.refresh();
      return http(method, `/demo/${path}`, { token: this.access, body });
    }
  }
}

// --- The socket ----------------------------------------------------------------------------------

const STOP = {
  1000: "signed off",
  1002: "protocol error",
  1007: "invalid text",
  1009: "frame too large",
  4400: "too many invalid frames",
  4403: "disconnected by an operator",
  4409: "replaced by a newer connection",
};
const TOKEN_EXPIRED = 4401;
const RATE_LIMITED = 4429;
const BACKOFF = { base: 0.5, cap: 20, calmDown: 5 };

/**
 * A connection that keeps itself alive: heartbeat, fresh tokens, reconnect.
 *
 * `listener.status(state, text)` hears how it is, `listener.event(name, data)` what the server says; a
 * `connection:ready` among that means: you are in no thread (any more), and may have missed something.
 */
class Connection {
  #socket = null;
  #wanted = true;
  #attempts = 0;
  #timer;
  #heartbeat;
  #lastId = 0;
  #asked = new Map();

  constructor(namespace, session, listener) {
    this.namespace = namespace;
    this.session = session;
    this.listener = listener;
    this.#connect();
  }

  /** Send and forget: for what does not matter any more once the connection is back. */
  send(event, data = {}) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ event, data }));
  }

  /** Send with an id and wait for its ack; rejects when it is refused or the connection is lost. */
  request(event, data = {}) {
    return new Promise((resolve, reject) => {
      if (this.#socket.readyState !== WebSocket.OPEN) return reject(new Error("not connected"));
      const id = ++this.#lastId;
      this.#asked.set(id, { resolve, reject });
      this.#socket.send(JSON.stringify({ event, data, id }));
    });
  }

  close() {
    this.#wanted = false;
    this.#clear();
    this.#socket.onmessage = null;
    this.#socket.close(1000);
  }

  #connect() {
    let opened = false;
    this.listener.status("connecting", "connecting");
    // A browser cannot set headers on a WebSocket; a token in the URL would end up in logs. So: sub-protocols.
    const url = `${document.body.dataset.socketsUrl}/${this.namespace}/`;
    this.#socket = new WebSocket(url, ["realtime.v1", `bearer.${this.session.access}`]);
    this.#socket.onopen = () => { opened = true; };
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = ({ code }) => this.#lost(code, opened);
  }

  #receive({ event, data, id }) {
    if (id !== undefined) {
      const { resolve, reject } = this.#asked.get(id) ?? {};
      this.#asked.delete(id);
      if (event === "ack") resolve?.(data);
      if (event === "error") reject?.(new Error(data.message));
      return;
    }
    if (event === "connection:ready") {
      this.#attempts = 0;
      this.#heartbeat = setInterval(() => this.send("heartbeat"), data.heartbeat_interval * 1000);
      this.listener.status("connected", "connected");
    }
    if (event === "auth:expiring") this.#renew();
    this.listener.event(event, data);
  }

  async #renew() {
    try {
      await this.session.refresh();
      await this.request("auth:refresh", { token: this.session.access });
    } catch (error) {
      console.warn("token not renewed; the connection will end with 4401", error);
    }
  }

  async #lost(code, opened) {
    this.#clear();
    if (!this.#wanted) return;
    if (code in STOP) return this.#stop(STOP[code]);
    if (code === RATE_LIMITED) this.#attempts = Math.max(this.#attempts, BACKOFF.calmDown);
    const verdict = opened ? null : await this.#verdict();
    if (verdict === 403 || verdict === 404) return this.#stop("not allowed here");
    if (code === TOKEN_EXPIRED || verdict === 401) {
      try {
        await this.session.refresh();
      } catch (error) {
        if (error.status === 401) return this.#stop("signed out: reload the page");
      }
    }
    this.#retry();
  }

  /** Why was the handshake refused? A browser is not told, so the same URL answers a plain GET. */
  async #verdict() {
    const url = `${document.body.dataset.socketsUrl.replace(/^ws/, "http")}/${this.namespace}/`;
    try {
      return (await fetch(url, { headers: { Authorization: `Bearer ${this.session.access}` } })).status;
    } catch {
      return null; // nobody there: come back later
    }
  }

  /** Full jitter: after a restart thousands of clients come back spread out, not all at once. */
  #retry() {
    if (!this.#wanted) return;
    const seconds = Math.random() * Math.min(BACKOFF.cap, BACKOFF.base * 2 ** this.#attempts++);
    this.listener.status("reconnecting", `reconnecting in ${Math.ceil(seconds)} s`);
    this.#timer = setTimeout(() => this.#connect(), seconds * 1000);
  }

  #stop(why) {
    if (!this.#wanted) return;
    this.#wanted = false;
    this.listener.status("stopped", why);
  }

  #clear() {
    clearTimeout(this.#timer);
    clearInterval(this.#heartbeat);
    for (const { reject } of this.#asked.values()) reject(new Error("connection lost"));
    this.#asked.clear();
  }
}

// --- Typing --------------------------------------------------------------------------------------

/** Says that I type: at most one start in 3 s while keys are pressed, a stop after 3 s without. */
class TypingSender {
  #startedAt = 0;
  #idle;

  constructor(say) {
    this.say = say;
  }

  key() {
    if (Date.now() - this.#startedAt >= 3000) {
      this.#startedAt = Date.now();
      this.say("typing:start");
    }
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.stop(), 3000);
  }

  stop() {
    clearTimeout(this.#idle);
    if (this.#startedAt) this.say("typing:stop");
    this.#startedAt = 0;
  }
}

/** Who types. Forgotten after 12 s without news: somebody whose machine died never says stop. */
class Typists {
  #timers = new Map();
  #names = new Map();

  constructor(changed) {
    this.changed = changed;
  }

  hear({ user_id, name, typing }) {
    clearTimeout(this.#timers.get(user_id));
    if (typing) {
      this.#names.set(user_id, name);
      this.#timers.set(user_id, setTimeout(() => this.forget(user_id), 12000));
      this.#tell();
    } else {
      this.forget(user_id);
    }
  }

  forget(user_id) {
    clearTimeout(this.#timers.get(user_id));
    this.#timers.delete(user_id);
    this.#names.delete(user_id);
    this.#tell();
  }

  clear() {
    for (const user_id of [...this.#timers.keys()]) this.forget(user_id);
  }

  #tell() {
    const names = [...this.#names.values()];
    this.changed(names.length ? `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…` : "");
  }
}

// --- What is seen --------------------------------------------------------------------------------

/** An element with children; strings become text, never markup. */
function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** The conversation on one side: its messages, who types, and a line to write. */
class Chat {
  constructor(root, { send, say, end }) {
    root.append(document.getElementById("chat").content.cloneNode(true));
    const find = (selector) => root.querySelector(selector);
    [this.topic, this.state, this.log] = [".topic", ".state", ".log"].map(find);
    [this.endButton, this.form, this.input] = [".end", ".compose", ".compose input"].map(find);
    this.root = root;
    this.typists = new Typists((text) => { find(".typing").textContent = text; });
    this.typing = new TypingSender(say);
    this.endButton.onclick = end;
    this.input.oninput = () => this.typing.key();
    this.form.onsubmit = async (event) => {
      event.preventDefault();
      this.typing.stop();
      const body = this.input.value;
      this.input.value = ""; // now, so that pressing Enter twice does not say it twice
      if (!(await send(body))) this.input.value ||= body;
    };
    this.show(null);
  }

  /** Show a conversation as the backbone has it, or none. */
  show(conversation, me = null) {
    if (conversation?.thread_id !== this.threadId) {
      this.typing.stop();
      this.typists.clear();
      this.log.replaceChildren();
      this.input.value = "";
    }
    this.me = me;
    this.threadId = conversation?.thread_id;
    this.root.hidden = !conversation;
    if (!conversation) return;
    const { status, customer, attendant, topic } = conversation;
    const other = customer.user_id === me ? attendant : customer;
    this.topic.textContent = topic;
    this.state.textContent = { waiting: "waiting for an attendant…", open: `with ${other?.name}`, ended: "ended" }[status];
    this.endButton.hidden = status === "ended";
    for (const control of this.form.elements) control.disabled = status !== "open";
    if (status === "ended") this.typists.clear();
    for (const message of conversation.messages ?? []) this.add(message);
  }

  /** Messages come by event, as the answer to a POST and with a fetch: whichever is first. */
  add({ thread_id, message_id, author, body, created_at }) {
    const shown = [...this.log.children];
    if (thread_id !== this.threadId || shown.some((item) => item.dataset.id === message_id)) return;
    this.typists.forget(author.user_id);
    const time = new Date(created_at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const item = element("li", { className: author.user_id === this.me ? "own" : "" },
      element("small", {}, `${author.name} · ${time}`), body);
    item.dataset.id = message_id;
    this.log.insertBefore(item, shown.find(({ dataset }) => Number(dataset.id) > Number(message_id)) ?? null);
    this.log.scrollTop = this.log.scrollHeight;
  }
}

/**
 * What both sides have in common: who is signed in, the connection, one conversation on the screen.
 * A side adds `refetch()`: fetch everything it shows, after each connect and when something may have been missed.
 */
class Pane {
  constructor(root, namespace) {
    this.root = root;
    this.namespace = namespace;
    this.chat = new Chat(this.find(".chat"), {
      say: (event) => this.connection?.send(event, { thread_id: this.chat.threadId }),
      send: (body) => this.attempt(async () => {
        this.chat.add(await this.session.post(`conversations/${this.chat.threadId}/messages/`, { body }));
      }),
      end: () => this.attempt(async () => {
        this.show(await this.session.post(`conversations/${this.chat.threadId}/end/`));
      }),
    });
    this.find("[name=user]").onchange = () => this.signIn();
  }

  find = (selector) => this.root.querySelector(selector);

  /** Run something that may fail, and say so where it does. Returns whether it went well. */
  async attempt(action) {
    const alert = this.find(".alert");
    try {
      await action();
      alert.textContent = "";
      return true;
    } catch (error) {
      alert.textContent = error.message;
      return false;
    }
  }

  /** Sign in as the chosen user and connect; whoever was signed in before is signed out. */
  signIn() {
    return this.attempt(async () => {
      this.signOut();
      this.#status("connecting", "signing in");
      const username = this.find("[name=user]").value;
      const session = await Session.signIn(username, "demo").catch((error) => {
        throw error.status === 401 ? new Error("No such user here yet: run manage.py createdemo.") : error;
      });
      if (username !== this.find("[name=user]").value) return; // another one was chosen meanwhile
      this.session = session;
      this.connection = new Connection(this.namespace, this.session, {
        status: (state, text) => this.#status(state, text),
        event: (name, data) => this.handlers[name]?.(data),
      });
    });
  }

  #status(state, text) {
    const output = this.find(".connection");
    output.textContent = text;
    output.dataset.state = state;
    this.chat.typists.clear(); // a stop may have been missed
  }

  signOut() {
    this.connection?.close();
    this.entering = null;
    this.show(null);
  }

  show(conversation) {
    this.chat.show(conversation, this.me);
  }

  /** Bring a conversation to the screen: into its room first, then fetch, so that nothing falls in between. */
  async enter(threadId) {
    this.entering = threadId;
    await this.connection.request("join:thread", { thread_id: threadId })
      .catch((error) => console.info(`thread ${threadId} not joined:`, error.message));
    const conversation = await this.session.get(`conversations/${threadId}/`);
    if (this.entering === threadId) this.show(conversation); // else another one was chosen meanwhile
  }

  handlers = {
    "connection:ready": ({ user_id }) => {
      this.me = user_id;
      this.attempt(() => this.refetch());
    },
    "room:gap": () => this.attempt(() => this.refetch()),
    "thread:message": (message) => this.chat.add(message),
    "thread:typing": (typist) => {
      if (typist.thread_id === this.chat.threadId) this.chat.typists.hear(typist);
    },
    "chat:ended": ({ thread_id }) => {
      if (thread_id === this.chat.threadId) this.attempt(() => this.enter(thread_id));
    },
  };
}

class AttendantPane extends Pane {
  #team = new Map();
  #chats = new Map();

  constructor(root) {
    super(root, "hub");
    for (const button of root.querySelectorAll(".status button")) {
      button.onclick = () => this.attempt(() => this.connection.request(`presence:${button.value}`));
    }
    const changed = (member) => { this.#team.set(member.user_id, member); this.#showTeam(); };
    Object.assign(this.handlers, {
      "presence:state": ({ members }) => {
        this.#team = new Map(members.map((member) => [member.user_id, member]));
        this.#showTeam();
      },
      "attendant:online": changed,
      "attendant:away": changed,
      "attendant:offline": ({ user_id }) => { this.#team.delete(user_id); this.#showTeam(); },
      "queue:new": ({ conversation }) => this.#put(conversation),
      "queue:taken": ({ item_id, attendant_id }) => {
        if (attendant_id !== this.me) { this.#chats.delete(item_id); this.#showChats(); }
      },
      "queue:updated": () => this.attempt(() => this.#fetchChats()),
    });
  }

  signOut() {
    this.connection?.send("presence:offline"); // so that the team need not wait out the grace period
    super.signOut();
    this.#team.clear();
    this.#chats.clear();
    this.#showTeam();
    this.#showChats();
  }

  async refetch() {
    await this.#fetchChats();
    const mine = [...this.#chats.values()].find(({ status }) => status === "open");
    const threadId = this.chat.threadId ?? mine?.thread_id;
    if (threadId) await this.enter(threadId);
  }

  async #fetchChats() {
    const { conversations } = await this.session.get("conversations/");
    this.#chats = new Map(conversations.map((conversation) => [conversation.thread_id, conversation]));
    this.#showChats();
  }

  #put(conversation) {
    this.#chats.set(conversation.thread_id, conversation);
    this.#showChats();
  }

  #take = (threadId) => this.attempt(async () => {
    this.#put(await this.session.post(`conversations/${threadId}/take/`));
    await this.#open(threadId);
  });

  async #open(threadId) {
    const previous = this.chat.threadId;
    if (previous && previous !== threadId) this.connection.send("leave:thread", { thread_id: previous });
    await this.enter(threadId);
  }

  #showTeam() {
    const people = [...this.#team.values()].sort((a, b) => a.name.localeCompare(b.name));
    this.find(".team").replaceChildren(...people.map(({ user_id, name, status }) => {
      const item = element("li", {}, user_id === this.me ? `${name} (me)` : name, element("small", {}, status));
      item.dataset.status = status;
      return item;
    }));
    const status = this.#team.get(this.me)?.status;
    for (const button of this.root.querySelectorAll(".status button")) {
      button.setAttribute("aria-pressed", button.value === status);
    }
  }

  #showChats() {
    const list = (selector, wanted, label, act) => this.find(selector).replaceChildren(
      ...[...this.#chats.values()].filter(({ status }) => status === wanted).map(({ thread_id, topic, customer }) =>
        element("li", {}, element("span", {}, topic, element("small", {}, customer.name)),
          element("button", { type: "button", onclick: () => act(thread_id) }, label))));
    list(".queue", "waiting", "Take", this.#take);
    list(".mine", "open", "Show", (threadId) => this.attempt(() => this.#open(threadId)));
  }
}

class CustomerPane extends Pane {
  constructor(root) {
    super(root, "portal");
    this.start = this.find(".start");
    this.start.onsubmit = (event) => {
      event.preventDefault();
      this.attempt(async () => {
        this.show(await this.session.post("conversations/", { topic: this.start.elements.topic.value }));
        this.start.reset();
      });
    };
    this.handlers["chat:accepted"] = ({ thread_id }) => this.attempt(() => this.enter(thread_id));
  }

  show(conversation) {
    super.show(conversation);
    this.start.hidden = Boolean(conversation) && conversation.status !== "ended";
  }

  async refetch() {
    const { conversations: [current] } = await this.session.get("conversations/");
    const threadId = current?.thread_id ?? this.chat.threadId;
    if (current?.status === "waiting") this.show(current); // nobody is in its thread yet
    else if (threadId) await this.enter(threadId);
  }
}

new AttendantPane(document.querySelector(".attendant")).signIn();
new CustomerPane(document.querySelector(".customer")).signIn();
