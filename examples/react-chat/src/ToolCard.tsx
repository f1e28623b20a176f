import { getToolName, type DynamicToolUIPart, type ToolUIPart } from "ai";

type Props = {
  part: ToolUIPart | DynamicToolUIPart;
  decide: (approvalId: string, approved: boolean) => void;
};

export function ToolCard({ part, decide }: Props) {
  return (
    <section className="tool" data-tool={getToolName(part)} data-state={part.state}>
      <header>
        {getToolName(part)} <span className="quiet">{part.state}</span>
      </header>
      {part.input !== undefined && <pre>{JSON.stringify(part.input)}</pre>}
      {part.state === "output-available" && <pre>{JSON.stringify(part.output)}</pre>}
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
