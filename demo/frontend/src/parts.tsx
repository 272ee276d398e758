/** Small components of both sides. */

import { useCallback, useEffect, useRef, useState, type CSSProperties, type ReactNode } from "react";
import { CLOSE_REASONS, type Socket, type Status } from "realtime-sockets";
import type { Session } from "./api";

export interface SideProps {
  session: Session;
  /** Whether this side is visible to the person. */
  visible: boolean;
  /** Called with the number of unread messages. */
  onUnread: (count: number) => void;
  /** The signed-in user, and a menu to switch to another user. */
  account: ReactNode;
}

export function Avatar({ name, status }: { name: string; status?: string | undefined }) {
  const initials = name.split(/\s+/, 2).map((word) => word[0]).join("");
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);
  return (
    <span className="avatar" data-status={status} style={{ "--hue": hue } as CSSProperties} aria-hidden="true">
      {initials}
    </span>
  );
}

const STATES: Record<Status, string> = {
  connecting: "connecting",
  connected: "connected",
  offline: "reconnecting…",
  denied: "no access",
  stopped: "signed off",
};

/** The status of the connection, in words. */
export function Connection({ state, text }: { state: Status; text?: string | undefined }) {
  return (
    <output className="connection" data-state={state}>
      {text ?? STATES[state]}
    </output>
  );
}

/** The server's reason for closing a connection for good, if it sent one. */
export function useClosing(socket: Socket, status: Status): string | undefined {
  const [reason, setReason] = useState<string>();
  useEffect(
    () =>
      socket.when("closed", ({ code }) =>
        setReason(code === 4403 ? "disconnected by an operator" : CLOSE_REASONS[code as keyof typeof CLOSE_REASONS]),
      ),
    [socket],
  );
  return status === "denied" ? reason : undefined;
}

export function time(at: string): string {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

// --- Toasts ---------------------------------------------------------------------------------------

export interface Toast {
  /** The subject: a later toast with the same key replaces this one. */
  key: string;
  title: string;
  text: string;
  label: string;
  act: () => void;
}

const TOAST_LASTS = 6_000;

/** At most three short notes in the corner; each disappears after a while, unless it has the pointer or the focus. */
export function useToasts(): { show: (toast: Toast) => void; dismiss: (key: string) => void; toasts: React.ReactNode } {
  const [shown, setShown] = useState<readonly (Toast & { id: number })[]>([]);
  const last = useRef(0);
  const dismiss = useCallback((key: string) => setShown((known) => known.filter((each) => each.key !== key)), []);
  const show = useCallback((toast: Toast) => {
    const id = ++last.current;
    setShown((known) => [...known.filter(({ key }) => key !== toast.key).slice(-2), { ...toast, id }]);
  }, []);
  const toasts = (
    <div className="toasts" role="status" aria-live="polite">
      {shown.map((toast) => (
        <Note key={toast.id} toast={toast} dismiss={() => dismiss(toast.key)} />
      ))}
    </div>
  );
  return { show, dismiss, toasts };
}

function Note({ toast, dismiss }: { toast: Toast; dismiss: () => void }) {
  const [held, setHeld] = useState(false);
  const end = useRef(dismiss);
  end.current = dismiss;
  useEffect(() => {
    if (held) return undefined;
    const timer = setTimeout(() => end.current(), TOAST_LASTS);
    return () => clearTimeout(timer);
  }, [held]);
  const hold = () => setHeld(true);
  const release = () => setHeld(false);
  return (
    <div className="toast" onMouseEnter={hold} onMouseLeave={release} onFocus={hold} onBlur={release}>
      <p>
        <strong>{toast.title}</strong>
        {toast.text}
      </p>
      <button
        type="button"
        onClick={() => {
          toast.act();
          dismiss();
        }}
      >
        {toast.label}
      </button>
      <button type="button" className="plain" aria-label="Dismiss" onClick={dismiss}>
        ×
      </button>
    </div>
  );
}
