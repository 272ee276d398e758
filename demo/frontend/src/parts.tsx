/** Small components of both sides. */

import { useEffect, useState, type CSSProperties, type ReactNode } from "react";
import { serverNow, type Session } from "./api";

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
  const initials = name.trim().split(/\s+/, 2).map((word) => [...word][0]).join("");
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);
  return (
    <span className="avatar" data-status={status} style={{ "--hue": hue } as CSSProperties} aria-hidden="true">
      {initials}
    </span>
  );
}

export function time(at: string): string {
  const date = new Date(at);
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], { ...(!isToday && { day: "numeric", month: "short" }), hour: "2-digit", minute: "2-digit" });
}

/** The current time in milliseconds since the epoch; renders every second. */
export function useNow(): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

const LONG = 5 * 60; // seconds after which a wait stands out

/** The time since a customer began to wait, as it runs: 0:42, 12:03, 1:00:00. */
export function Waiting({ since }: { since: string }) {
  useNow();
  const seconds = Math.max(0, Math.floor((serverNow() - Date.parse(since)) / 1000));
  const parts = [Math.floor(seconds / 60) % 60, seconds % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(seconds / 3600);
  const text = hours > 0 ? [hours, ...parts].join(":") : parts.join(":").replace(/^0/, "");
  return (
    <span className="wait" role="timer" aria-label="Waiting time" data-long={seconds >= LONG || undefined}>
      {text}
    </span>
  );
}

/** What is shown until there is something to show. */
export function Loading() {
  return (
    <div className="loading" role="status" aria-label="Loading">
      <i />
      <i />
      <i />
    </div>
  );
}

/** An error, as a text for the user; nothing if there is none. */
export function Problem({ text, label, onClose }: { text: string; label?: string; onClose: () => void }) {
  return (
    <div className="alert" role="alert">
      {text && (
        <>
          <p>{text}</p>
          <button type="button" className="plain" aria-label={label ?? "Dismiss"} onClick={onClose}>
            {label ?? "×"}
          </button>
        </>
      )}
    </div>
  );
}
