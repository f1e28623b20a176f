// Drives what drive_runs.mjs leaves out: every list filter, streams, tokens, options, refusals.
// Usage as for drive.mjs; several scenarios count requests through a fetch of their own.
import {
  auth,
  batch,
  configure,
  idempotencyKeys,
  runs,
  sessions,
  streams,
  tasks,
  wait,
} from "@trigger.dev/sdk";

const [scenario, json] = process.argv.slice(2);
const args = json ? JSON.parse(json) : {};

async function collect(list, bound = 200) {
  const found = [];
  for await (const value of list) {
    found.push(value);
    if (found.length >= bound) break;
  }
  return found;
}

const ids = async (list) => (await collect(list)).map((one) => one.id);

// Calls, and says what was thrown and how many requests went out.
async function outcome(call) {
  const real = globalThis.fetch;
  let requests = 0;
  globalThis.fetch = (...given) => {
    // Subscriptions and streams that were left go on asking for a while.
    const asks = (given[1]?.method ?? given[0]?.method ?? "GET") === "GET";
    if (!(asks && String(given[0]?.url ?? given[0]).includes("/realtime/"))) requests += 1;
    return real(...given);
  };
  try {
    return { value: await call(), requests };
  } catch (error) {
    return { name: error.name, class: error.constructor.name, status: error.status, requests };
  } finally {
    globalThis.fetch = real;
  }
}

const scenarios = {
  // sessions.list: pages, and every filter.
  async sessionList() {
    const tag = `tag-${args.id}`;
    const started = [];
    for (let n = 0; n < 5; n += 1)
      started.push(
        await sessions.start({
          type: n % 2 ? "odd" : "even",
          externalId: `${args.id}/${n}`,
          taskIdentifier: "double",
          triggerConfig: { basePayload: { n } },
          tags: [tag],
        }),
      );
    await sessions.close(`${args.id}/4`);
    const page = await sessions.list({ tag, limit: 2 });
    const second = await page.getNextPage();
    const back = await second.getPreviousPage();
    const list = (where) => ids(sessions.list({ tag, limit: 2, ...where }));
    return {
      all: started.map((one) => one.id).reverse(),
      paged: await list({}),
      pages: [page.data.length, second.data.length, back.data.length],
      closed: await list({ status: "CLOSED" }),
      active: (await list({ status: ["ACTIVE"] })).length,
      odd: (await list({ type: "odd" })).length,
      task: (await list({ taskIdentifier: ["double", "other"] })).length,
      one: await list({ externalId: `${args.id}/2` }),
      recent: (await list({ period: "1h" })).length,
      before: (await list({ to: new Date(Date.now() - 3600_000) })).length,
      since: (await list({ from: new Date(Date.now() - 3600_000) })).length,
    };
  },

  // The server's side of a chat in a browser: start a session, mint tokens of one's own.
  async startAction() {
    const { chat } = await import("@trigger.dev/sdk/ai");
    const id = `${args.id}-chat`;
    const start = chat.createStartSessionAction("double", { tokenTTL: "10m" });
    const started = await start({ chatId: id, clientData: { n: 1 } });
    const again = await start({ chatId: id });
    const kept = await chat.createAccessToken(id);
    const send = (accessToken) =>
      outcome(() => auth.withAuth({ accessToken }, () => sessions.open(id).in.send({ n: 2 })));
    const life = (token) => {
      const { exp, iat } = JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
      return exp - iat;
    };
    return {
      token: (await send(started.publicAccessToken)).requests,
      life: life(started.publicAccessToken),
      same: started.sessionId === again.sessionId,
      kept: (await send(kept)).status ?? "sent",
    };
  },

  // withPublicToken and its kin: a token is made, used within, and gone.
  async within() {
    const run = await tasks.trigger("double", { n: 1 });
    const scopes = { read: { runs: [run.id] } };
    let seen, made, many;
    await auth.withPublicToken({ scopes }, async () => (seen = await runs.retrieve(run.id)));
    await auth.withTriggerPublicToken("double", { multipleUse: true }, async () => {
      made = await tasks.trigger("double", { n: 2 });
    });
    await auth.withBatchTriggerPublicToken("double", { multipleUse: true }, async () => {
      many = await tasks.batchTrigger("double", [{ payload: { n: 3 } }]);
    });
    return { seen: seen.id === run.id, made: typeof made.id, many: many.runCount };
  },

  // triggerConfig's options are those of the first run.
  async triggerConfig() {
    const started = await sessions.start({
      type: "plain",
      externalId: args.id,
      taskIdentifier: "double",
      triggerConfig: {
        basePayload: { n: 21 },
        machine: "small-2x",
        tags: ["configured"],
        maxAttempts: 2,
        maxDuration: 60,
      },
    });
    const run = await runs.poll(started.runId, { pollIntervalMs: 50 });
    const onMachine = await ids(runs.list({ machine: ["small-2x"], tag: "configured" }));
    return { id: started.runId, tags: run.tags, onMachine, status: run.status };
  },

  // runs.list: every filter, pages, and the list of a project.
  async runList() {
    const tag = `tag-${args.id}`;
    const made = [];
    for (let n = 0; n < 3; n += 1)
      made.push(await tasks.trigger("double", { n }, { tags: [tag, `${tag}-${n}`] }));
    const other = await tasks.trigger("measure", "text", { tags: [tag], delay: "1h" });
    for (const run of made) await runs.poll(run.id, { pollIntervalMs: 50 });
    const page = await runs.list({ tag, limit: 2 });
    const second = await page.getNextPage();
    const version = page.data[1].version;
    const list = async (where) => (await ids(runs.list({ tag, limit: 2, ...where }))).length;
    return {
      all: [other, ...[...made].reverse()].map((run) => run.id),
      paged: await ids(runs.list({ tag, limit: 2 })),
      pages: [page.data.length, second.data.length, second.hasNextPage()],
      env: typeof page.data[0].env.name,
      completed: await list({ status: ["COMPLETED"] }),
      delayed: await list({ status: "DELAYED" }),
      task: await list({ taskIdentifier: "measure" }),
      tags: await list({ tag: [`${tag}-1`, `${tag}-2`] }),
      version: await list({ version: [version] }),
      otherVersion: await list({ version: "nobody" }),
      queue: await list({ queue: { type: "task", name: "double" } }),
      custom: await list({ queue: [{ type: "custom", name: "double" }] }),
      isTest: await list({ isTest: true }),
      isNoTest: await list({ isTest: false }),
      machine: await list({ machine: "large-2x" }),
      region: await list({ region: "nowhere" }),
      schedule: await list({ schedule: "sched_none" }),
      batch: await list({ batch: "batch_none" }),
      bulkAction: await list({ bulkAction: "bulk_none" }),
      period: await list({ period: "1h" }),
      from: await list({ from: new Date(Date.now() - 3600_000) }),
      to: await list({ to: new Date(Date.now() - 3600_000) }),
      project: await ids(runs.list("proj_any", { tag, env: ["dev", "prod"] })),
      elsewhere: await ids(runs.list("proj_any", { tag, env: "prod" })),
    };
  },

  // streams.define().read, streams.read with options, runs.fetchStream, subscribeToRun.withStreams.
  async streams() {
    const run = await tasks.trigger("narrator", { count: 2 });
    const story = streams.define({ id: "story" });
    const defined = await collect(await story.read(run.id, { timeoutInSeconds: 5 }), 2);
    const fetched = await collect(await runs.fetchStream(run.id, "letters"), 3);
    const followed = { run: 0, story: [], letters: [] };
    for await (const part of runs.subscribeToRun(run.id).withStreams()) {
      if (part.type === "run") followed.run += 1;
      else followed[part.type].push(part.chunk);
      if (followed.story.length === 2 && followed.letters.length === 3 && followed.run) break;
    }
    // Outside of a run these do nothing, and say nothing.
    const outside = await outcome(() => streams.append("story", "x"));
    await runs.poll(run.id, { pollIntervalMs: 50 });
    const ended = await outcome(() =>
      streams.input({ id: "words" }).send(run.id, "too late"),
    );
    return { defined, fetched, followed, outside: outside.requests, ended: ended.status };
  },

  // streams.input().send: the run reads it.
  async input() {
    const words = streams.input({ id: "words" });
    const run = await tasks.trigger("listener", {});
    const sent = [];
    for (const word of ["hello", { deep: [1, null] }, "bye"])
      sent.push((await outcome(() => words.send(run.id, word))).requests);
    const ended = await runs.poll(run.id, { pollIntervalMs: 50 });
    const echo = await collect(await streams.read(run.id, "echo", { timeoutInSeconds: 5 }), 3);
    return { sent, output: ended.output, echo };
  },

  // Tokens of every kind open what they say and nothing else.
  async tokens() {
    const run = await tasks.trigger("double", { n: 1 });
    const other = await tasks.trigger("double", { n: 1 });
    const publicToken = await auth.createPublicToken({ scopes: { read: { runs: [run.id] } } });
    const many = await auth.createTriggerPublicToken("double", { multipleUse: true });
    const batches = await auth.createBatchTriggerPublicToken("double", { multipleUse: true });
    const as = (accessToken, call) => outcome(() => auth.withAuth({ accessToken }, call));
    return {
      own: (await as(publicToken, () => runs.retrieve(run.id))).value?.id === run.id,
      foreign: (await as(publicToken, () => runs.retrieve(other.id))).status,
      first: Boolean((await as(many, () => tasks.trigger("double", { n: 1 }))).value?.id),
      second: Boolean((await as(many, () => tasks.trigger("double", { n: 1 }))).value?.id),
      measure: (await as(many, () => tasks.trigger("measure", "x"))).status,
      batch: (await as(batches, () => tasks.batchTrigger("double", [{ payload: { n: 1 } }]))).value
        ?.runCount,
    };
  },

  // ttl, debounce, priority, queue, concurrencyKey, maxDuration, machine, metadata, version.
  async options() {
    const soon = { key: args.id, delay: "1s" };
    const first = await tasks.trigger("double", { n: 1 }, { debounce: soon });
    const second = await tasks.trigger("double", { n: 2 }, { debounce: soon });
    const debounced = await runs.poll(first.id, { pollIntervalMs: 100 });
    const locked = await tasks.trigger("double", { n: 1 }, { version: "nobody", ttl: "1s" });
    const expired = await runs.poll(locked.id, { pollIntervalMs: 100 });
    const all = await tasks.trigger(
      "double",
      { n: 4 },
      {
        queue: "mine",
        concurrencyKey: "a",
        priority: 10,
        maxAttempts: 2,
        maxDuration: 60,
        machine: "medium-1x",
        metadata: { m: { deep: 1 } },
        tags: ["t"],
        ttl: "1h",
      },
    );
    const ended = await runs.poll(all.id, { pollIntervalMs: 50 });
    const bad = await outcome(() => tasks.trigger("double", { n: 1 }, { ttl: "soon" }));
    return {
      same: first.id === second.id,
      debounced: debounced.output,
      expired: [expired.status, expired.isFailed, expired.error?.message],
      output: ended.output,
      metadata: ended.metadata,
      ttl: ended.ttl,
      queue: (await ids(runs.list({ queue: { type: "custom", name: "mine" } }))).includes(all.id),
      bad: [bad.status, bad.requests],
    };
  },

  // Keys: global, run scope outside a run, arrays, their time to live, reset.
  async keys() {
    const trigger = (options) => tasks.trigger("double", { n: 1 }, options);
    const whole = await idempotencyKeys.create([args.id, "b"], { scope: "global" });
    const one = await trigger({ idempotencyKey: whole });
    const two = await trigger({ idempotencyKey: whole });
    await idempotencyKeys.reset("double", [args.id, "b"], { scope: "global" });
    const three = await trigger({ idempotencyKey: whole });
    const brief = await trigger({ idempotencyKey: `${args.id}-brief`, idempotencyKeyTTL: "1s" });
    await new Promise((resolve) => setTimeout(resolve, 1100));
    const after = await trigger({ idempotencyKey: `${args.id}-brief`, idempotencyKeyTTL: "1s" });
    const unknown = await outcome(() =>
      idempotencyKeys.reset("double", `${args.id}-none`, { scope: "global" }),
    );
    return {
      same: one.id === two.id,
      fresh: three.id !== one.id,
      expired: brief.id !== after.id,
      unknown: unknown.status,
    };
  },

  // batch.triggerByTask takes the objects of tasks; every item has options of its own.
  async batches() {
    const double = { id: "double" };
    const made = await batch.triggerByTask([
      { task: double, payload: { n: 1 } },
      { task: { id: "measure" }, payload: "abc", options: { tags: ["mixed"] } },
    ]);
    let found;
    for (let tries = 0; tries < 200; tries += 1) {
      found = await batch.retrieve(made.batchId);
      if (found.status === "COMPLETED") break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    const outputs = [];
    for (const id of found.runs) outputs.push((await runs.retrieve(id)).output);
    const unknown = await outcome(() => batch.retrieve("batch_none"));
    return { outputs, unknown: [unknown.status, unknown.requests] };
  },

  // What is refused, as which class, and how often the client tried: its retries are ours to spare.
  async refusals() {
    configure({
      requestOptions: { retry: { maxAttempts: 3, minTimeoutInMs: 10, maxTimeoutInMs: 20 } },
    });
    const wrong = { accessToken: "tr_dev_nobodysnobodysnobodysno" };
    const shown = (found) => [found.class, found.status, found.requests];
    const refused = {
      body: () =>
        sessions.start({
          type: "x".repeat(65),
          taskIdentifier: "double",
          triggerConfig: { basePayload: {} },
        }),
      credential: () => auth.withAuth(wrong, () => runs.retrieve("run_none")),
      forbidden: async () => {
        const token = await auth.createPublicToken({ scopes: { read: { runs: ["run_none"] } } });
        return await auth.withAuth({ accessToken: token }, () => sessions.list().then((p) => p));
      },
      run: () => runs.cancel("run_none"),
      session: () => sessions.retrieve("nobody"),
      closed: async () => {
        await sessions.start({
          type: "plain",
          externalId: args.id,
          taskIdentifier: "double",
          triggerConfig: { basePayload: { n: 1 } },
        });
        await sessions.close(args.id);
        return await sessions.open(args.id).in.send("late");
      },
      rule: () => tasks.trigger("double", {}, { tags: Array.from({ length: 11 }, (_, n) => `${n}`) }),
      task: () => tasks.trigger("nobody", {}),
      delayed: async () => {
        const run = await tasks.trigger("double", { n: 1 });
        await runs.poll(run.id, { pollIntervalMs: 50 });
        return await runs.reschedule(run.id, { delay: "1h" });
      },
      token: () => wait.retrieveToken("waitpoint_none"),
    };
    const seen = {};
    for (const [name, call] of Object.entries(refused)) seen[name] = shown(await outcome(call));
    // One just triggered may not be visible yet elsewhere: this 404 alone is tried again.
    seen.visible = shown(await outcome(() => runs.retrieve("run_none")));
    return seen;
  },
};

// On a server of its own, since it uses up what a key may ask for.
const alone = {
  // Past its limit a client waits until the time it is told, and its caller sees nothing of it.
  async limited() {
    const asked = [];
    const found = await outcome(async () => {
      for (let n = 0; n < 12; n += 1) asked.push((await sessions.list()).data.length);
    });
    const once = { retry: { maxAttempts: 1 } };
    let shown;
    for (let n = 0; n < 20 && !shown?.status; n += 1)
      shown = await outcome(() => runs.list({}, { ...once }));
    return { asked: asked.length, requests: found.requests, status: shown.status, class: shown.class };
  },
};

// Each by itself; a failure is an answer too.
const results = {};
const played = scenario === "all" ? Object.keys(scenarios) : [scenario];
for (const name of played) {
  try {
    results[name] = await (scenarios[name] ?? alone[name])();
  } catch (error) {
    results[name] = { failed: String(error.stack ?? error) };
  }
}
console.log(JSON.stringify(results));
process.exit(0);
