"""Tasks that the tests of runs, tokens and batches talk to."""

import asyncio

from everturn import metadata, streams, task, tasks, wait


@task("double")
async def double(payload):
    """Twice the number it is given."""
    return {"doubled": payload["n"] * 2}


@task("measure")
async def measure(payload):
    """How long the text is that it is given."""
    text = payload["text"] if isinstance(payload, dict) else payload
    return {"length": len(text)}


@task("steps")
async def steps(payload):
    """Says in its metadata how far it is."""
    for step in range(3):
        metadata.set("step", step)
        await metadata.flush()
        await asyncio.sleep(0.15)
    return {"steps": 3}


@task("approval")
async def approval(payload):
    """Makes a token, says so, and waits for it."""
    token = await wait.create_token(timeout=payload.get("timeout"), tags=["approval"])
    metadata.set("token", token.id)
    metadata.set("url", token.url)
    await metadata.flush()
    result = await wait.for_token(token)
    return {"ok": result.ok, "output": result.output, "error": str(result.error or "")}


@task("waiting")
async def waiting(payload):
    """Waits for a token somebody else made."""
    return {"said": await wait.for_token(payload["token"]).unwrap()}


@task("sync-waiting")
def sync_waiting(payload):
    """The same from a `def` task."""
    result = wait.for_token(payload["token"])
    return {"said": result.unwrap()}


@task("sync-approval")
def sync_approval(payload):
    """Makes a token, completes it and waits for it, all from a `def` task."""
    token = wait.create_token(tags=["sync"])
    wait.complete_token(token, payload)
    streams.append("told", "story")
    return wait.for_token(token).unwrap()


@task("family")
async def family(payload):
    """Doubles numbers in runs of their own and waits for all of them."""
    results = await tasks.batch_trigger_and_wait(
        [{"task": "double", "payload": {"n": n}} for n in payload["numbers"]]
    )
    return {"batch": results.id, "doubled": [run.output["doubled"] for run in results.runs]}


@task("listener")
async def listener(payload):
    """Says what it is sent, and ends with the word `bye`."""
    heard = []
    async for word in streams.inputs("words", timeout_s=30):
        heard.append(word)
        await streams.append(f"heard {word}", "echo")
        if word == "bye":
            break
    return {"heard": heard}


@task("narrator")
async def narrator(payload):
    """Writes a few values to streams of its own and of its parent."""
    for number in range(payload["count"]):
        await streams.append({"line": number}, "story")
    await streams.pipe(["a", "b", "c"], "letters")
    return {"written": payload["count"]}
