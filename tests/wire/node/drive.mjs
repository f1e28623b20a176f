// Drives the official client through one scenario and prints what it saw as one JSON line.
// Usage: node drive.mjs SCENARIO [JSON arguments]; TRIGGER_API_URL and TRIGGER_SECRET_KEY are set.
import { sessions } from "@trigger.dev/sdk";
import { AgentChat } from "@trigger.dev/sdk/chat";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

async function collect(stream, { until } = {}) {
  const values = [];
  for await (const value of stream) {
    values.push(value);
    if (until && until(value, values)) break;
  }
  return values;
}

const scenarios = {
  // sessions.start, open(id).in.send, open(id).out.read on a task without a chat.
  async sessions() {
    const started = await sessions.start({
      type: "inbox",
      externalId: args.id,
      taskIdentifier: "inbox",
      triggerConfig: { basePayload: { hello: 1 }, tags: ["wire"] },
      tags: ["one"],
      metadata: { plan: "free" },
    });
    const again = await sessions.start({
      type: "inbox",
      externalId: args.id,
      taskIdentifier: "inbox",
      triggerConfig: { basePayload: { hello: 1 } },
    });
    const handle = sessions.open(args.id);
    await handle.in.send({ n: 1 });
    await handle.in.send("two");
    await handle.in.send("bye");
    const controller = new AbortController();
    const controls = [];
    const stream = await handle.out.read({
      signal: controller.signal,
      timeoutInSeconds: 20,
      onControl: (control) => controls.push(control.subtype),
    });
    const out = await collect(stream, { until: (value) => value?.said === "goodbye" });
    controller.abort();
    const retrieved = await sessions.retrieve(args.id);
    const updated = await sessions.update(args.id, { tags: ["two"], metadata: { plan: "pro" } });
    const listed = await collect(sessions.list({ tag: "two", limit: 10 }));
    const closed = await sessions.close(args.id, { reason: "done" });
    const closedAgain = await sessions.close(args.id, { reason: "other" });
    return { started, again, out, controls, retrieved, updated, listed, closed, closedAgain };
  },

  // AgentChat: a message, a follow-up on the same run, then close.
  async chat() {
    const runs = [];
    const chat = new AgentChat({
      agent: "echo",
      id: args.id,
      clientData: { userId: "u1" },
      onTriggered: (event) => void runs.push(event.runId),
    });
    const first = await (await chat.sendMessage("hello")).text();
    const stateAfterFirst = chat.session;
    const second = await (await chat.sendMessage("again")).text();
    const session = await sessions.retrieve(args.id);
    const closed = await chat.close();
    return { first, second, stateAfterFirst, state: chat.session, runs, run: session.currentRunId, closed };
  },

  // Two objects for one chat: the second restores from lastEventId and sees only its own turn.
  async restore() {
    const before = new AgentChat({ agent: "echo", id: args.id });
    const first = await (await before.sendMessage("one")).text();
    const after = new AgentChat({ agent: "echo", id: args.id, session: before.session });
    const second = await (await after.sendMessage("two")).text();
    return { first, second, before: before.session, after: after.session };
  },

  // Stop in the middle of a slow answer; the next answer is whole.
  async stop() {
    const chat = new AgentChat({ agent: "slow", id: args.id });
    const stream = await chat.sendMessage("count");
    let text = "";
    let stopped = false;
    for await (const chunk of stream) {
      if (chunk.type === "text-delta") text += chunk.delta;
      if (!stopped && text.length > 10) {
        stopped = true;
        await chat.stop();
        break;
      }
    }
    const next = await (await chat.sendMessage("short")).text();
    return { text, next };
  },

  // One message, read to its end while somebody kills the worker: prints READY after some text.
  async crash() {
    const chat = new AgentChat({ agent: "slow", id: args.id, streamTimeoutSeconds: 60 });
    const stream = await chat.sendMessage("count");
    const types = [];
    let text = "";
    let ready = false;
    for await (const chunk of stream) {
      types.push(chunk.type);
      if (chunk.type === "text-delta") text += chunk.delta;
      if (!ready && text.length > 10) {
        ready = true;
        console.log("READY");
      }
    }
    return { text, types };
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario ${scenario}: ${Object.keys(scenarios).join(", ")}`);
const timer = setTimeout(() => {
  console.error(`scenario ${scenario} took longer than 90 s`);
  process.exit(3);
}, 90_000);
try {
  console.log(JSON.stringify(await run()));
} finally {
  clearTimeout(timer);
}
process.exit(0);
