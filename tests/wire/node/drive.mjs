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
    const updated = await sessions.update(args.id, { tags: [args.tag], metadata: { plan: "pro" } });
    const listed = await collect(sessions.list({ tag: args.tag, limit: 10 }));
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

  // Writing .out from outside: append, pipe, writer and a control record on one channel, trimmed
  // at the end; the channel is read from its start before and after.
  async directWrites() {
    const handle = sessions.open(args.id);
    await handle.out.append({ type: "start", messageId: "m1" });
    await handle.out.append("plain");
    const source = (async function* () {
      for (let n = 0; n < 5; n++) yield { type: "data-piped", data: n };
    })();
    const piped = handle.out.pipe(source);
    await piped.waitUntilComplete();
    const written = handle.out.writer({
      execute: async ({ write, merge }) => {
        write({ type: "data-written", data: "ä \\ \"" });
        merge(
          new ReadableStream({
            start(controller) {
              controller.enqueue({ type: "data-merged" });
              controller.close();
            },
          }),
        );
      },
    });
    const end = await written.waitUntilComplete();
    const control = await handle.out.writeControl("turn-complete", [["public-access-token", "pp"]]);
    const before = await readOut(handle, { count: 10 });
    await handle.out.trimTo(4);
    const after = await readOut(handle, { count: 6 });
    return { end, control, before, after };
  },

  // A long write in many batches: what was written is read back in its order.
  async directVolume() {
    const handle = sessions.open(args.id);
    const padding = "x".repeat(args.bytes);
    const { waitUntilComplete } = handle.out.pipe(
      (async function* () {
        for (let n = 0; n < args.count; n++) yield { type: "data-n", data: { n, padding } };
      })(),
    );
    const end = await waitUntilComplete();
    const read = await readOut(handle, { count: args.count });
    return { end, numbers: read.values.map((value) => value.data.n) };
  },

  // A slow write, while somebody kills the server and starts it again: prints READY once some of
  // it is stored. The client tries again by itself, and may give up before the server is back.
  async directCrash() {
    const handle = sessions.open(args.id);
    const { waitUntilComplete } = handle.out.pipe(
      (async function* () {
        for (let n = 0; n < args.count; n++) {
          yield { type: "data-n", data: n };
          await new Promise((resolve) => setTimeout(resolve, 5));
          if (n === 100) console.log("READY");
        }
      })(),
    );
    try {
      return { end: await waitUntilComplete() };
    } catch (error) {
      return { error: String(error) };
    }
  },

  // What is refused reaches the caller as an error.
  async directRefused() {
    const said = async (work) => {
      try {
        await work();
        return null;
      } catch (error) {
        return { name: error.name, status: error.status, message: String(error.message) };
      }
    };
    const handle = sessions.open(args.id);
    await handle.out.append({ type: "data-first" });
    const tooLarge = await said(() => handle.out.append({ type: "text-delta", delta: "x".repeat(1 << 20) }));
    const reserved = await said(() => handle.out.writeControl("x", [["", "trim"]]));
    const unknown = await said(() => sessions.open("session_cmissing").out.append({ n: 1 }));
    const closed = await said(() => sessions.open(args.closed).out.append({ n: 2 }));
    return { tooLarge, reserved, unknown, closed };
  },

  // The order of requests of a head start: a writer's own end, one past the last record, is where
  // its caller reads on from. The answer that follows must arrive all the same.
  async onePastTheTail() {
    const handle = sessions.open(args.id);
    const first = handle.out.pipe(
      (async function* () {
        yield { type: "start" };
        yield { type: "text-start", id: "t" };
      })(),
    );
    const { lastEventId } = await first.waitUntilComplete();
    const later = readOut(handle, { count: 2, lastEventId });
    await new Promise((resolve) => setTimeout(resolve, 300));
    await handle.out.append({ type: "text-end", id: "t" });
    await handle.out.append({ type: "finish" });
    return { lastEventId, later: await later };
  },

  // chat.headStart: the first step is made here, the agent continues it or finds it whole.
  async headStart() {
    const { chat } = await import("@trigger.dev/sdk/chat-server");
    const { streamText, simulateReadableStream } = await import("ai");
    const { MockLanguageModelV3 } = await import("ai/test");
    const model = new MockLanguageModelV3({
      doStream: async () => ({
        stream: simulateReadableStream({
          chunks: [
            { type: "stream-start", warnings: [] },
            { type: "text-start", id: "t" },
            { type: "text-delta", id: "t", delta: "warm " },
            { type: "text-delta", id: "t", delta: "hello" },
            { type: "text-end", id: "t" },
            {
              type: "finish",
              finishReason: { unified: "stop", raw: "stop" },
              usage: {
                inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
                outputTokens: { total: 1, text: 1, reasoning: 0 },
              },
            },
          ],
        }),
      }),
    });
    const handler = chat.headStart({
      agentId: args.agent,
      run: async ({ chat: helper }) => streamText({ ...helper.toStreamTextOptions({}), model }),
    });
    const response = await handler(
      new Request("http://app/api/chat", {
        method: "POST",
        body: JSON.stringify({
          chatId: args.id,
          trigger: "submit-message",
          headStartMessages: [{ id: "u1", role: "user", parts: [{ type: "text", text: "hi" }] }],
        }),
      }),
    );
    const text = await response.text();
    const events = text
      .split("\n\n")
      .filter((event) => event.startsWith("data: "))
      .map((event) => JSON.parse(event.slice(6)));
    const stored = await readOut(sessions.open(args.id), { until: "turn-complete" });
    return { status: response.status, events, stored };
  },
};

// Reads .out until `count` records were seen, data and control together, or until a control record.
async function readOut(handle, { count = Infinity, until, lastEventId } = {}) {
  const controller = new AbortController();
  const parts = [];
  const controls = [];
  const check = () => {
    if (parts.length + controls.length >= count) controller.abort();
    if (controls.some((control) => control.subtype === until)) controller.abort();
  };
  const stream = await handle.out.read({
    signal: controller.signal,
    lastEventId,
    timeoutInSeconds: 20,
    onPart: (part) => {
      if (part.chunk === undefined) return; // a control record, which `onControl` sees
      parts.push({ id: part.id, chunk: part.chunk });
      check();
    },
    onControl: (control) => {
      controls.push({ subtype: control.subtype, seqNum: control.seqNum });
      check();
    },
  });
  const values = [];
  try {
    for await (const value of stream) values.push(value);
  } catch (error) {
    if (!controller.signal.aborted) throw error;
  }
  return { values: parts.map((part) => part.chunk), ids: parts.map((part) => part.id), controls };
}

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
