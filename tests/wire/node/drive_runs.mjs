// Drives the official client's runs, wait tokens and batches through one scenario and prints what
// it saw as one JSON line. Usage as for drive.mjs.
import { auth, batch, idempotencyKeys, runs, streams, tasks, wait } from "@trigger.dev/sdk";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

async function poll(look, done) {
  for (let tries = 0; tries < 400; tries += 1) {
    const value = await look();
    if (done(value)) return value;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("what was waited for never came");
}

const tokenOf = async (run) =>
  (await poll(() => runs.retrieve(run), (found) => found.metadata?.url)).metadata;

const scenarios = {
  // createToken, a run that waits for it, completeToken, retrieveToken, listTokens.
  async token() {
    const token = await wait.createToken({ timeout: "1h", tags: ["wire", args.id] });
    const run = await tasks.trigger(args.task ?? "waiting", { token: token.id });
    await poll(() => runs.retrieve(run.id), (found) => found.status === "WAITING");
    const before = await wait.retrieveToken(token.id);
    const listed = [];
    for await (const item of wait.listTokens({ tags: [args.id], status: ["WAITING"] }))
      listed.push(item.id);
    const completed = await wait.completeToken(token.id, { yes: true, on: new Date(0) });
    const again = await wait.completeToken(token.id, { yes: false });
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    const after = await wait.retrieveToken(token.id);
    return { token, before, listed, completed, again, ended, after };
  },

  // A run makes a token; a third party posts to its URL.
  async callback() {
    const run = await tasks.trigger("approval", {});
    const { url } = await tokenOf(run.id);
    const posted = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ approved: "by mail" }),
    });
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    return { status: posted.status, body: await posted.json(), output: ended.output };
  },

  // A run waits for a token that nobody completes.
  async timeout() {
    const run = await tasks.trigger("approval", { timeout: "6s" });
    const ended = await runs.poll(run.id, { pollIntervalMs: 100 });
    const token = await wait.retrieveToken(ended.metadata.token);
    return { output: ended.output, status: token.status, error: String(token.error ?? "") };
  },

  // subscribeToRun follows one run from its start to its end, with the run's own public token.
  async subscribe() {
    const run = await tasks.trigger("steps", {}, { tags: [args.id] });
    const seen = [];
    await auth.withAuth({ accessToken: run.publicAccessToken }, async () => {
      // Left by hand: this client stops asking 30 s after the end, and its loop never ends.
      for await (const now of runs.subscribeToRun(run.id)) {
        seen.push({ status: now.status, step: now.metadata?.step, output: now.output });
        if (now.isCompleted && now.finishedAt) break;
      }
    });
    return { id: run.id, seen };
  },

  // subscribeToRunsWithTag and subscribeToBatch see what others start.
  async sets() {
    const tagged = [];
    const tag = `tag-${args.id}`;
    const following = (async () => {
      for await (const run of runs.subscribeToRunsWithTag(tag)) {
        tagged.push([run.id, run.status]);
        if (new Set(tagged.filter(([, s]) => s === "COMPLETED").map(([id]) => id)).size === 2)
          return;
      }
    })();
    await tasks.trigger("double", { n: 1 }, { tags: ["other"] });
    const one = await tasks.trigger("double", { n: 1 }, { tags: [tag] });
    await runs.poll(one.id, { pollIntervalMs: 50 });
    const two = await tasks.trigger("double", { n: 2 }, { tags: [tag, "more"] });
    await following;
    return { tagged, ids: [one.id, two.id] };
  },

  // replay, reschedule, list filters, related runs, resetting an idempotency key.
  async mutations() {
    const first = await tasks.trigger("double", { n: 21 }, { tags: [args.id] });
    await runs.poll(first.id, { pollIntervalMs: 50 });
    const replayed = await runs.replay(first.id);
    const again = await runs.poll(replayed.id, { pollIntervalMs: 50 });
    const delayed = await tasks.trigger("double", { n: 1 }, { delay: "1h", tags: [args.id] });
    const before = await runs.retrieve(delayed.id);
    const moved = await runs.reschedule(delayed.id, { delay: "2h" });
    await runs.cancel(delayed.id);
    const canceled = [];
    for await (const run of runs.list({ tag: args.id, status: ["CANCELED"] })) canceled.push(run.id);
    const key = await idempotencyKeys.create(args.id);
    const keyed = await tasks.trigger("double", { n: 1 }, { idempotencyKey: key });
    const cached = await tasks.trigger("double", { n: 1 }, { idempotencyKey: key });
    await idempotencyKeys.reset("double", key);
    const fresh = await tasks.trigger("double", { n: 1 }, { idempotencyKey: key });
    return { first, replayed, again, delayed, before, moved, canceled, keyed, cached, fresh };
  },

  // A payload over 128 KiB travels as a packet, and comes back through a link.
  async packet() {
    const text = "x".repeat(args.size);
    const run = await tasks.trigger("measure", { text });
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    return { output: ended.output, back: ended.payload?.text?.length };
  },

  // tasks.batchTrigger and batch.trigger, retrieve, subscribeToBatch.
  async batch() {
    const items = [1, 2, 3].map((n) => ({ payload: { n }, options: { tags: [`n${n}`] } }));
    const handle = await tasks.batchTrigger("double", items);
    const whole = await poll(
      () => batch.retrieve(handle.batchId),
      (found) => found.status === "COMPLETED",
    );
    const outputs = [];
    for (const id of whole.runs) outputs.push((await runs.retrieve(id)).output.doubled);
    const mixed = await batch.trigger([
      { id: "double", payload: { n: 5 } },
      { id: "measure", payload: "four" },
    ]);
    const seen = new Set();
    for await (const run of runs.subscribeToBatch(mixed.batchId)) {
      if (run.status === "COMPLETED") seen.add(run.taskIdentifier);
      if (seen.size === 2) break;
    }
    const listed = [];
    for await (const run of runs.list({ batch: handle.batchId })) listed.push(run.id);
    const keyed = await tasks.batchTrigger("double", items, { idempotencyKey: args.id });
    const cached = await tasks.batchTrigger("double", items, { idempotencyKey: args.id });
    return {
      handle,
      whole,
      outputs,
      seen: [...seen].sort(),
      listed,
      ids: [keyed.batchId, cached.batchId],
    };
  },

  // streams.read follows what a run writes; a stream of another run is empty.
  async streams() {
    const run = await tasks.trigger("narrator", { count: 3 });
    const seen = [];
    for await (const value of await streams.read(run.id, "story", { timeoutInSeconds: 5 })) {
      seen.push(value);
      if (seen.length === 3) break;
    }
    const later = [];
    await runs.poll(run.id, { pollIntervalMs: 50 });
    for await (const value of await streams.read(run.id, "letters", { startIndex: 1 })) {
      later.push(value);
      if (later.length === 2) break;
    }
    return { seen, later };
  },

  // A browser's token for one task, used for one batch.
  async batchToken() {
    const token = await auth.createBatchTriggerPublicToken("double");
    const out = {};
    await auth.withAuth({ accessToken: token }, async () => {
      const handle = await tasks.batchTrigger("double", [{ payload: { n: 1 } }]);
      out.runs = handle.runCount;
      for (const [name, task] of [["again", "double"], ["other", "measure"]])
        await tasks.batchTrigger(task, [{ payload: { n: 1 } }]).then(
          () => (out[name] = "accepted"),
          (error) => (out[name] = error.cause?.status ?? error.status),
        );
    });
    return out;
  },
};

const run = scenarios[scenario];
if (!run) throw new Error(`no scenario ${scenario}: ${Object.keys(scenarios).join(", ")}`);
const timer = setTimeout(() => {
  console.error(`scenario ${scenario} took longer than 60 s`);
  process.exit(3);
}, 60_000);
try {
  console.log(JSON.stringify(await run()));
} finally {
  clearTimeout(timer);
}
process.exit(0);
