/** Short notes in the corner. */

import { useCallback, useEffect, useRef, useState, type ReactNode } from "react";

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
export function useToasts(): { show: (toast: Toast) => void; dismiss: (key: string) => void; toasts: ReactNode } {
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
