/** The questions that the desk asks. Each is a modal dialog of the browser: it keeps the focus, and Escape closes it. */

import { useEffect, useId, useRef, type ReactNode } from "react";
import type { Member } from "realtime-sockets/react";
import { Avatar } from "./parts";

function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ReactNode }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const opened = dialog.current;
    if (opened && !opened.open) opened.showModal();
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby={id} onClose={onClose}>
      <form method="dialog">
        <h3 id={id}>{title}</h3>
        {children}
      </form>
    </dialog>
  );
}

export interface Question {
  title: string;
  text: string;
  yes: string;
  no: string;
}

/** Asks before something that cannot be undone. The answer that changes nothing has the focus. */
export function Confirm({ question, onYes, onClose }: { question: Question; onYes: () => void; onClose: () => void }) {
  return (
    <Dialog title={question.title} onClose={onClose}>
      <p>{question.text}</p>
      <div className="answers">
        <button>{question.no}</button>
        <button className="danger" onClick={onYes}>
          {question.yes}
        </button>
      </div>
    </Dialog>
  );
}

/** Asks which colleague gets the chat. */
export function TransferDialog({
  colleagues,
  onChoose,
  onClose,
}: {
  colleagues: readonly Member[];
  onChoose: (colleague: Member) => void;
  onClose: () => void;
}) {
  return (
    <Dialog title="Transfer to" onClose={onClose}>
      {colleagues.length === 0 && <p>No colleague is here now. Those who come online appear in this list.</p>}
      <ul className="colleagues" aria-label="Colleagues">
        {colleagues.map((colleague) => (
          <li key={colleague.user_id}>
            <button className="open" onClick={() => onChoose(colleague)}>
              <Avatar name={colleague.name} status={colleague.status} />
              <span className="about">
                {colleague.name}
                <small>{colleague.status}</small>
              </span>
            </button>
          </li>
        ))}
      </ul>
      <div className="answers">
        <button>Keep the chat</button>
      </div>
    </Dialog>
  );
}
