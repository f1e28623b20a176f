// Drives the less common functions of AgentChat, and the browser's transport outside of a browser.
// Usage as for drive.mjs.
import { createServer } from "node:http";
import { Readable } from "node:stream";
import { sessions } from "@trigger.dev/sdk";
import { AgentChat } from "@trigger.dev/sdk/chat";
import { baseURL, read, send, start, textOf, token, transportOf, user } from "./transport.mjs";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

const scenarios = {
  async preload() {
    const runs = [];
    const chat = new AgentChat({
      agent: "remembering",
      id: args.id,
      onTriggered: (event) => void runs.push(event.runId),
    });
    await chat.preload();
    const preloaded = runs.length;
    const text = await (await chat.sendMessage("hi")).text();
    return { preloaded, runs: runs.length, text };
  },

  async regenerate() {
    const chat = new AgentChat({ agent: "remembering", id: args.id, clientData: { n: 1 } });
    const first = await (await chat.sendMessage("hi")).text();
    const again = textOf(await read(await chat.sendRaw([], { trigger: "regenerate-message" })));
    return { first, again };
  },

  async steer() {
    const chat = new AgentChat({ agent: "counting", id: args.id });
    const before = await chat.steer("too early");
    const stream = await chat.sendMessage("count");
    const text = await stream.text();
    const steered = await chat.steer("once more");
    return { before, steered, text };
  },

  async action() {
    const chat = new AgentChat({ agent: "remembering", id: args.id });
    await (await chat.sendMessage("one")).text();
    await (await chat.sendAction({ type: "forget" })).text();
    return { after: await (await chat.sendMessage("two")).text() };
  },

  async reconnect() {
    const chat = new AgentChat({ agent: "counting", id: args.id });
    const never = await chat.reconnect();
    const stream = await chat.sendMessage("count");
    let seen = "";
    for await (const chunk of stream) {
      seen += chunk.delta ?? "";
      if (seen.includes("5 ")) break;
    }
    const other = new AgentChat({ agent: "counting", id: args.id, session: chat.session });
    const rest = textOf(await read(await other.reconnect()));
    return { never, seen, rest };
  },

  // Address by function, headers and fetch of one's own, client data, sessions that are handed in.
  async transport() {
    const asked = [];
    const changes = [];
    const transport = transportOf("remembering", {
      baseURL: ({ endpoint }) => (asked.push(endpoint), baseURL),
      headers: { "x-custom": "yes" },
      fetch: (url, init, { endpoint }) => (asked.push(`fetch ${endpoint}`), fetch(url, init)),
      clientData: { n: 1 },
      onSessionChange: (id, session) => changes.push(session?.isStreaming),
    });
    const first = textOf(await send(transport, args.id, "one"));
    const session = transport.getSession(args.id);
    const restored = transportOf("remembering", { sessions: { [args.id]: session } });
    const second = textOf(await send(restored, args.id, "two"));
    const idle = await restored.reconnectToStream({ chatId: args.id });
    return { asked: [...new Set(asked)], changes, first, second, idle };
  },

  async transportAction() {
    const transport = transportOf("remembering");
    await send(transport, args.id, "one");
    const chunks = await read(await transport.sendAction(args.id, { type: "forget" }));
    return { chunks, after: textOf(await send(transport, args.id, "two")) };
  },

  // `watch`: one stream sees the turns of somebody else, too.
  async watch() {
    const watching = transportOf("remembering", { watch: true });
    const stream = await watching.sendMessages({
      trigger: "submit-message",
      chatId: args.id,
      messages: [user("one")],
      abortSignal: undefined,
    });
    let other;
    const chunks = await read(stream, (found) => {
      const finished = found.filter((chunk) => chunk.type === "finish").length;
      if (finished === 1) other ??= new AgentChat({ agent: "remembering", id: args.id });
      if (finished === 1 && found.at(-1).type === "finish") void other.sendMessage("two");
      return finished === 2;
    });
    return { text: textOf(chunks) };
  },

  async stopGeneration() {
    const transport = transportOf("counting");
    const stream = await transport.sendMessages({
      trigger: "submit-message",
      chatId: args.id,
      messages: [user("count")],
      abortSignal: undefined,
    });
    const chunks = [];
    let stopped;
    for await (const chunk of stream) {
      chunks.push(chunk);
      if (textOf(chunks).includes("3 ")) stopped ??= await transport.stopGeneration(args.id);
    }
    return { stopped, text: textOf(chunks), next: textOf(await send(transport, args.id, "again")) };
  },

  // Aborting a stream that was resumed: for one version of the client that is a stop.
  async abortResumed() {
    const first = transportOf("counting");
    const stream = await first.sendMessages({
      trigger: "submit-message",
      chatId: args.id,
      messages: [user("count")],
      abortSignal: undefined,
    });
    await read(stream, (chunks) => textOf(chunks).includes("3 "));
    const resume = async (abortSignal) => {
      const sessions = { [args.id]: { publicAccessToken: await token(args.id) } };
      return transportOf("counting", { sessions }).reconnectToStream({
        chatId: args.id,
        abortSignal,
      });
    };
    const aborted = new AbortController();
    const seen = await read(await resume(aborted.signal), (chunks) => {
      if (textOf(chunks).includes("5 ")) aborted.abort();
      return false;
    });
    return { seen: textOf(seen), whole: textOf(await read(await resume())) };
  },

  // A session this server has never seen is started anew; a closed one is refused for good.
  async lost() {
    let starts = 0;
    const transport = transportOf("remembering", {
      startSession: (given) => (starts++, start("remembering")(given)),
      sessions: { [args.id]: { publicAccessToken: await token(args.id) } },
    });
    const text = textOf(await send(transport, args.id, "one"));
    await sessions.close(args.id);
    const refused = await send(transport, args.id, "two").catch((error) => error);
    return { starts, text, refused: { status: refused.status, message: String(refused.message) } };
  },

  // The transport's first message goes to a handler of one's own, the second to the session.
  async headStart() {
    const { chat } = await import("@trigger.dev/sdk/chat-server");
    const { streamText, simulateReadableStream } = await import("ai");
    const { MockLanguageModelV3 } = await import("ai/test");
    const usage = {
      inputTokens: { total: 1, noCache: 1, cacheRead: 0, cacheWrite: 0 },
      outputTokens: { total: 1, text: 1, reasoning: 0 },
    };
    const model = new MockLanguageModelV3({
      doStream: async () => ({
        stream: simulateReadableStream({
          chunks: [
            { type: "stream-start", warnings: [] },
            { type: "text-start", id: "t" },
            { type: "text-delta", id: "t", delta: "warm hello" },
            { type: "text-end", id: "t" },
            { type: "finish", finishReason: { unified: "stop", raw: "stop" }, usage },
          ],
        }),
      }),
    });
    const handler = chat.headStart({
      agentId: "remembering",
      run: async ({ chat: helper }) => streamText({ ...helper.toStreamTextOptions({}), model }),
    });
    const server = createServer(async (request, response) => {
      const body = Readable.toWeb(request);
      const answer = await handler(
        new Request("http://app/chat", { method: "POST", body, duplex: "half" }),
      );
      response.writeHead(answer.status, Object.fromEntries(answer.headers));
      for await (const piece of answer.body) response.write(piece);
      response.end();
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const headStart = `http://127.0.0.1:${server.address().port}/chat`;
    const transport = transportOf("remembering", { headStart });
    const first = textOf(await send(transport, args.id, "one"));
    const second = textOf(await send(transport, args.id, "two"));
    return { first, second };
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario ${scenario}: ${Object.keys(scenarios).join(", ")}`);
const timer = setTimeout(() => {
  console.error(`scenario ${scenario} took longer than 60 s`);
  process.exit(3);
}, 60_000);
console.log(JSON.stringify(await run()));
clearTimeout(timer);
process.exit(0);
