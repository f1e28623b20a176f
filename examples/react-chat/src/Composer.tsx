import { useRef, useState, type FormEvent } from "react";

type Props = { disabled: boolean; send: (text: string, files?: FileList) => void };

// A record carries at most 1 MiB, and a file travels inside of one, a third larger than it is.
const FILE_BYTES_MAX = 700_000;

export function Composer({ disabled, send }: Props) {
  const [text, setText] = useState("");
  const [refused, setRefused] = useState("");
  const chosen = useRef<HTMLInputElement>(null);

  function submit(event: FormEvent) {
    event.preventDefault();
    const files = chosen.current?.files?.length ? chosen.current.files : undefined;
    const bytes = [...(files ?? [])].reduce((sum, file) => sum + file.size, 0);
    if (bytes > FILE_BYTES_MAX) return setRefused("These files are too large to send.");
    if (!text.trim() && !files) return;
    send(text, files);
    setText("");
    setRefused("");
    if (chosen.current) chosen.current.value = "";
  }

  return (
    <form onSubmit={submit}>
      <input
        aria-label="Message"
        placeholder={disabled ? "Active in another tab" : "Say something"}
        autoFocus
        value={text}
        disabled={disabled}
        onChange={(event) => setText(event.target.value)}
      />
      <input aria-label="Attachments" type="file" multiple ref={chosen} disabled={disabled} />
      <button disabled={disabled}>Send</button>
      {refused && <p className="error">{refused}</p>}
    </form>
  );
}
