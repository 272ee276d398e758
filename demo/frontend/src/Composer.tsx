import { useRef, useState, type KeyboardEvent } from "react";

export interface ComposerProps {
  draft: string;
  autoFocus: boolean;
  onChange: (text: string) => void;
  /** True if the message was sent. */
  onSend: (body: string) => Promise<boolean>;
}

const LINES = 6; // that are shown at once

/** The field in which a message is written: Enter sends it, Shift+Enter starts a new line. */
export function Composer({ draft, autoFocus, onChange, onSend }: ComposerProps) {
  const [text, setText] = useState(draft);
  const typed = useRef(draft); // since the request began, too
  const change = (changed: string) => {
    typed.current = changed;
    setText(changed);
    onChange(changed);
  };
  const unsent = useRef<string[]>([]);
  const send = async () => {
    if (text.trim() === "") return;
    change(""); // before the request, so that pressing Enter twice does not send it twice
    if (unsent.current.push(text) > 1) return; // the loop below, already running, sends it after those before it
    while (unsent.current.length > 0 && (await onSend(unsent.current[0]!))) unsent.current.shift();
    const failed = unsent.current.splice(0);
    // Before what was typed meanwhile; also the draft, which outlives this field.
    if (failed.length > 0) change([...failed, typed.current].join("\n").trimEnd());
  };
  return (
    <form
      className="compose"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <textarea
        aria-label="Message"
        dir="auto"
        placeholder="Write a message"
        title="Enter sends, Shift+Enter starts a new line"
        enterKeyHint="send"
        rows={Math.min(LINES, text.split("\n").length)}
        maxLength={4000}
        autoComplete="off"
        autoFocus={autoFocus}
        value={text}
        onChange={(event) => change(event.target.value)}
        onKeyDown={submitOnEnter}
      />
      <button className="primary" disabled={text.trim() === ""}>
        Send
      </button>
    </form>
  );
}

function submitOnEnter(event: KeyboardEvent<HTMLTextAreaElement>): void {
  // While an input method composes a word, Enter chooses the word.
  if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
  event.preventDefault();
  event.currentTarget.form?.requestSubmit();
}
