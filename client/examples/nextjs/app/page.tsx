import { signIn, signOut } from "./actions";
import { Present, Thread } from "./chat";
import * as session from "./session";
import { Sockets } from "./sockets";

export default async function Page({ searchParams }: { searchParams: Promise<{ refused?: string }> }) {
  if (!(await session.isOpen())) {
    return (
      <form action={signIn}>
        {(await searchParams).refused && <p role="alert">The username or password is wrong.</p>}
        <input name="username" aria-label="Username" autoComplete="username" required />
        <input name="password" aria-label="Password" type="password" autoComplete="current-password" required />
        <button>Sign in</button>
      </form>
    );
  }
  return (
    // The URL is read at request time and not built in: one build serves every environment.
    <Sockets hub={process.env.SOCKETS_URL ?? "ws://127.0.0.1:8001/hub/"}>
      <Thread id="42" />
      <Present group="attendants" />
      <form action={signOut}>
        <button>Sign out</button>
      </form>
    </Sockets>
  );
}
