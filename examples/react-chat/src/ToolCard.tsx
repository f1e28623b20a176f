import { getToolName, type DynamicToolUIPart, type ToolUIPart } from "ai";

type Props = {
  part: ToolUIPart | DynamicToolUIPart;
  decide: (approvalId: string, approved: boolean) => void;
};

export function ToolCard({ part, decide }: Props) {
  return (
    <section className="tool" data-tool={getToolName(part)} data-state={part.state}>
      <header>
        {getToolName(part)} <span className="quiet">{said(part)}</span>
      </header>
      {hasContent(part.input) && <pre>{JSON.stringify(part.input)}</pre>}
      {part.state === "output-available" && <pre className="output">{JSON.stringify(part.output)}</pre>}
      {part.state === "output-error" && <p className="error">{part.errorText}</p>}
      {part.state === "approval-requested" && (
        <p>
          <button onClick={() => decide(part.approval.id, true)}>Approve</button>
          <button onClick={() => decide(part.approval.id, false)}>Deny</button>
        </p>
      )}
    </section>
  );
}

// What a streaming tool gives before its last output is preliminary.
const said = (part: Props["part"]) =>
  part.state === "output-available" && part.preliminary ? SAID["input-available"] : SAID[part.state];

const SAID = {
  "input-streaming": "is being called",
  "input-available": "is working",
  "approval-requested": "asks for your approval",
  "approval-responded": "was decided",
  "output-available": "has answered",
  "output-error": "has failed",
  "output-denied": "was denied",
};

const hasContent = (input: unknown) => input != null && Object.keys(input).length > 0;
