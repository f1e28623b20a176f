"""Streams of a run: lines of output for whoever reads them, and input from outside (§13).

They are kept by the stream engine like the channels of sessions, under a key no session can have:
external ids must not begin with `session_`, and ids of ours have no slash. A stream needs no
declaration, is readable after its run has ended, and takes nothing more from then on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from everturn.errors import InvalidRequest, RunNotFound
from everturn.protocol.records import ChannelName, NewRecord, data_body, input_body
from everturn.rules import limits
from everturn.rules.run_states import FINAL

if TYPE_CHECKING:
    from everturn.server.services import Services
    from everturn.storage.ports.rows import Run


#: What an input stream is called among the streams of its run.
_INPUT: Final = "$trigger.input:"
#: Runs whose streams are remembered, to spare a look-up per value.
_KNOWN_MAX: Final = 10_000


class RunStream(NamedTuple):
    """A stream of a run, to write to."""

    run: Run
    name: str
    is_input: bool

    @property
    def channel(self) -> ChannelName:
        return channel_of(self.run, self.name, is_input=self.is_input)


def output_names(run: Run) -> tuple[str, ...]:
    """The streams a run has written to, as readers name them."""
    return tuple(name for name in run.streams if not name.startswith(_INPUT))


def channels_of(run: Run) -> tuple[ChannelName, ...]:
    """The channels of all streams of a run."""
    return tuple(
        channel_of(run, name.removeprefix(_INPUT), is_input=name.startswith(_INPUT))
        for name in run.streams
    )


def channel_of(run: Run, stream: str, *, is_input: bool = False) -> ChannelName:
    """The channel of a run's stream. Raises InvalidRequest for a name that is too long."""
    if not 1 <= len(stream) <= limits.RUN_STREAM_CHARS_MAX:
        raise InvalidRequest(
            f"a stream's name has 1 to {limits.RUN_STREAM_CHARS_MAX} characters, not {len(stream)}"
        )
    if not is_input and stream.startswith(_INPUT):
        raise InvalidRequest(f"a stream's name does not begin with {_INPUT!r}")
    key = f"session_{run.id}/{stream}"
    return ChannelName(run.environment_id, key, "in" if is_input else "out")


class RunStreams:
    """Writes to streams of runs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def target(self, environment_id: str, run_id: str, target: str) -> Run:
        """The run a stream belongs to: the run itself, its parent or the root of its family.

        Raises RunNotFound, InvalidRequest for another target or when that run has ended.
        """
        run = await self._services.state.run(environment_id, run_id)
        if run is None:
            raise RunNotFound("Run not found", should_retry=False)
        wanted = {
            "self": run.id,
            "parent": run.parent_run_id,
            "root": run.root_run_id or run.id,
        }
        if target not in wanted:
            raise InvalidRequest("the target is self, parent or root")
        found_id = wanted[target]
        if found_id is not None and found_id != run.id:
            run = await self._services.state.run(environment_id, found_id)
        if run is None or found_id is None:
            raise RunNotFound(f"this run has no {target}", should_retry=False)
        if run.state in FINAL:
            raise InvalidRequest("Cannot append to a stream of a run that has ended")
        return run

    async def append_text(self, stream: RunStream, text: str, part_id: str | None) -> int:
        """Store one chunk of text. The same part id again adds nothing."""
        part = part_id or self._services.ids.part()
        return await self._store(stream, [NewRecord(body=input_body(text, part), part_id=part)])

    async def append_values(self, stream: RunStream, values: Sequence[tuple[str, bytes]]) -> int:
        """Store `(part id, JSON text)` pairs, together."""
        records = [NewRecord(body=data_body(data, part), part_id=part) for part, data in values]
        return await self._store(stream, records)

    async def _store(self, stream: RunStream, records: Sequence[NewRecord]) -> int:
        channel = stream.channel
        await self._note(stream)
        return (await self._services.streams.append(channel, records)).seq_nums[-1]

    async def _note(self, stream: RunStream) -> None:
        """Keep the stream's name on its run before its first value.

        Subscribers learn from it what to read, and retention what to forget: a value without the
        name would stay for ever.
        """
        name = f"{_INPUT}{stream.name}" if stream.is_input else stream.name
        key = (stream.run.id, name)
        if name not in stream.run.streams and key not in self._known:
            await self._services.state.note_stream(
                stream.run.environment_id,
                stream.run.id,
                name,
                now_ms=self._services.clock.now_ms(),
            )
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
