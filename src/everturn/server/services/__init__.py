"""What the server decides, apart from HTTP and apart from engines.

`Services` holds the ports and one object per noun. A service takes the whole container and
reads its neighbours from it when it needs them, because two of them lean on each other both
ways (an append wakes a run; a run that ends looks at what was appended). Services import
`storage.ports` only; which engines stand behind the ports is `server/assembly.py`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everturn.clock import Clock
    from everturn.ids import Ids
    from everturn.server.settings import Settings
    from everturn.storage.ports.snapshots import ObjectStore
    from everturn.storage.ports.state import StateStore
    from everturn.storage.ports.streams import StreamStore
    from everturn.storage.ports.wakeups import Wakeups


class Services:
    """The ports and the services of one server process."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        ids: Ids,
        state: StateStore,
        streams: StreamStore,
        objects: ObjectStore,
        wakeups: Wakeups,
        master_key: bytes,
    ) -> None:
        # Imported here, because every module below names `Services` in its types.
        from everturn.server.services.batches import Batches
        from everturn.server.services.changes import observed
        from everturn.server.services.direct import Direct
        from everturn.server.services.dispatch import Dispatch
        from everturn.server.services.finishing import Finishing
        from everturn.server.services.histories import Histories
        from everturn.server.services.inbox import Inbox
        from everturn.server.services.keys import Keys
        from everturn.server.services.links import Links
        from everturn.server.services.outbox import Outbox
        from everturn.server.services.packets import Packets
        from everturn.server.services.realtime import Realtime
        from everturn.server.services.recovery import Recovery
        from everturn.server.services.run_streams import RunStreams
        from everturn.server.services.run_trace import Traces
        from everturn.server.services.runs import Runs
        from everturn.server.services.sessions import Sessions
        from everturn.server.services.snapshots import Snapshots
        from everturn.server.services.tokens import Tokens
        from everturn.server.services.waitpoints import Waitpoints
        from everturn.server.services.waits import Waits

        self.settings = settings
        self.clock = clock
        self.ids = ids
        #: Whoever follows a run is told after each of its changes.
        self.state = observed(state, wakeups)
        self.streams = streams
        self.objects = objects
        self.wakeups = wakeups
        #: Where clients reach this server; `serve` corrects the port when a free one was taken.
        self.base_url = settings.base_url
        #: Names this process among several on the same state store.
        self.server_id = ids.new("server")
        self.keys = Keys(state, clock, ids, master_key)
        self.tokens = Tokens(self)
        self.sessions = Sessions(self)
        self.inbox = Inbox(self)
        self.histories = Histories(self)
        self.snapshots = Snapshots(self, master_key)
        self.direct = Direct(self, master_key)
        self.dispatch = Dispatch(self)
        self.runs = Runs(self)
        self.outbox = Outbox(self)
        self.waits = Waits(self)
        self.waitpoints = Waitpoints(self)
        self.batches = Batches(self)
        self.packets = Packets(self, master_key)
        self.realtime = Realtime(self)
        self.run_streams = RunStreams(self)
        self.traces = Traces(self)
        self.finishing = Finishing(self)
        self.recovery = Recovery(self)
        self.links = Links(self)
