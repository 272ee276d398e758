import { useEffect, useMemo, useState, type ComponentType, type MouseEvent } from "react";
import { SocketProvider } from "realtime-sockets/react";
import { HttpError, Session } from "./api";
import { AttendantConsole } from "./Attendant";
import { Connection } from "./connection";
import { CustomerWidget } from "./Customer";
import { Avatar, Loading, Problem, type SideProps } from "./parts";

const PASSWORD = "demo"; // of all users that `manage.py createdemo` creates
const ATTENDANTS = { ana: "Ana Lima", bia: "Bia Souza" };
const CUSTOMERS = { carla: "Carla Reis", davi: "Davi Alves", elisa: "Elisa Prado" };

/** Two users on one page, each with a session and a connection of their own. */
export function App({ sockets }: { sockets: string }) {
  const narrow = useMedia("(max-width: 900px)");
  const [side, setSide] = useState<"Customer" | "Attendant">("Attendant");
  const [unread, setUnread] = useState({ Customer: 0, Attendant: 0 });
  const pageVisible = usePageVisible();
  const sees = (name: typeof side) => pageVisible && (!narrow || side === name);
  const total = unread.Customer + unread.Attendant;
  useEffect(() => {
    document.title = `${total > 0 ? `(${total}) ` : ""}Support desk · realtime-sockets`;
  }, [total]);

  return (
    <>
      <header className="page">
        <h1>
          <span className="logo" aria-hidden="true" />
          <span>Support desk</span>
        </h1>
        <p>Two people, two sockets: start a chat on the customer’s side, take it on the attendant’s.</p>
        <nav className="sides" aria-label="Sides">
          {(["Attendant", "Customer"] as const).map((name) => (
            <button key={name} type="button" aria-pressed={side === name} onClick={() => setSide(name)}>
              {name} {unread[name] > 0 && <span className="badge">{unread[name]}</span>}
            </button>
          ))}
        </nav>
      </header>
      <main data-side={side} onClickCapture={ignoreSecondClick}>
        <Side
          name="Attendant"
          people={ATTENDANTS}
          url={`${sockets}/hub/`}
          visible={sees("Attendant")}
          onUnread={(count) => setUnread((known) => ({ ...known, Attendant: count }))}
          screen={AttendantConsole}
        />
        <Side
          name="Customer"
          people={CUSTOMERS}
          url={`${sockets}/portal/`}
          visible={sees("Customer")}
          onUnread={(count) => setUnread((known) => ({ ...known, Customer: count }))}
          screen={CustomerWidget}
        />
      </main>
    </>
  );
}

function Side({
  name,
  people,
  url,
  screen: Screen,
  ...props
}: {
  name: string;
  people: Record<string, string>;
  url: string;
  visible: boolean;
  onUnread: (count: number) => void;
  screen: ComponentType<SideProps>;
}) {
  const [username, setUsername] = useState(Object.keys(people)[0]!);
  const { session, problem, retry } = useSession(username);
  const namespaces = useMemo(() => session && { desk: { url, getToken: session.getToken } }, [session, url]);
  const account = (
    <label className="account">
      <Avatar name={people[username]!} />
      <span className="hidden">Signed in as</span>
      <select value={username} onChange={(event) => setUsername(event.target.value)}>
        {Object.entries(people).map(([value, label]) => (
          <option key={value} value={value}>
            {label}
          </option>
        ))}
      </select>
    </label>
  );
  return (
    <section className={`pane ${name.toLowerCase()}`} aria-labelledby={`${name}-title`}>
      <h2 id={`${name}-title`} className="hidden">
        {name}
      </h2>
      {session && namespaces ? (
        <SocketProvider key={session.me} namespaces={namespaces}>
          <Screen session={session} account={account} {...props} />
        </SocketProvider>
      ) : (
        <>
          <header className="bar">
            {account}
            <Connection state={problem ? "denied" : "connecting"} text={problem ? "not signed in" : "signing in"} />
          </header>
          <Problem text={problem} label="Try again" onClose={retry} />
          {!problem && <Loading />}
        </>
      )}
    </section>
  );
}

function useSession(username: string): { session: Session | undefined; problem: string; retry: () => void } {
  const [state, setState] = useState<{ username: string; session?: Session; problem?: string }>();
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    let wanted = true;
    setState(undefined);
    Session.signIn(username, PASSWORD).then(
      (session) => wanted && setState({ username, session }),
      (error: unknown) => wanted && setState({ username, problem: explain(error) }),
    );
    return () => {
      wanted = false;
    };
  }, [username, attempt]);
  const current = state?.username === username ? state : undefined;
  const retry = () => setAttempt((count) => count + 1);
  return { session: current?.session, problem: current?.problem ?? "", retry };
}

/** The second click of a double click: after the first, another button may be under the pointer. */
function ignoreSecondClick(event: MouseEvent): void {
  if (event.detail < 2 || !(event.target as Element).closest("button")) return;
  event.preventDefault();
  event.stopPropagation();
}

function explain(error: unknown): string {
  if (!(error instanceof HttpError)) return "The server cannot be reached.";
  return error.status === 401 ? "The user does not exist yet: run manage.py createdemo." : error.message;
}

function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const changed = () => setMatches(list.matches);
    changed();
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, [query]);
  return matches;
}

function usePageVisible(): boolean {
  const [visible, setVisible] = useState(() => document.visibilityState === "visible");
  useEffect(() => {
    const changed = () => setVisible(document.visibilityState === "visible");
    document.addEventListener("visibilitychange", changed);
    return () => document.removeEventListener("visibilitychange", changed);
  }, []);
  return visible;
}
