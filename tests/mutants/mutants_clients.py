"""What clients are shown and may decide, and what link and state believe of each other."""

from __future__ import annotations

from typing import Final

from mutant import Mutant

LATE_ANSWERS: Final = "tests/unit/chat/test_late_answers.py"
JOINING: Final = "tests/unit/client/test_client_joining.py"
TRIMMED: Final = "tests/unit/client/test_client_trimmed.py"
LATE: Final = "src/everturn/chat/late_answers.py"
AGREEMENT: Final = "src/everturn/server/services/link_agreement.py"

CLIENTS: Final = (
    Mutant(
        "an answer is read without what was trimmed of it",
        "P-3",
        "src/everturn/client/follow.py",
        "if self._whole and record.seq_num >",
        "if False and record.seq_num >",
        (TRIMMED,),
    ),
    Mutant(
        "who joins the turn of another is shown nothing of it",
        "P-3",
        "src/everturn/client/turns.py",
        "        self.skipping = not self._joined\n",
        "",
        (JOINING, "-k", "reads_it_from_there_on"),
    ),
    Mutant(
        "a client approves a call that it made up itself",
        "P-12",
        LATE,
        "    if not known.issuperset(decided):\n",
        "    if False:\n",
        (LATE_ANSWERS, "-k", "nobody_knows"),
    ),
    Mutant(
        "an approval that comes late is kept and not carried out",
        "P-3",
        LATE,
        "    late = _late(parts_of(found[place]), answered, is_last=is_last)\n",
        "    late: list[Part] = []\n",
        (LATE_ANSWERS, "-k", "carried_out"),
    ),
    Mutant(
        "metadata whose sending was cut short is sent as something new",
        "P-5",
        "src/everturn/tasks/metadata.py",
        "        key, batch = self._sent\n",
        "        key, batch = keeper.ids.part(), self._sent[1]\n",
        ("tests/unit/tasks/test_metadata_sent_once.py",),
    ),
    Mutant(
        "what a run asks for overtakes its start",
        "P-3",
        "src/everturn/server/services/link.py",
        "                await self._starts.settled(call.run_id, call.fence)\n",
        "",
        ("tests/unit/server/test_engine_claims.py", "-k", "until_its_start_is_stored"),
    ),
    Mutant(
        "a run that its worker has let go of stays the worker's",
        "P-3",
        AGREEMENT,
        "        for run_id, fence in sorted(lasting[1])[:_RUNS_MAX]:\n"
        "            await self._take_back(run_id, fence)\n",
        "",
        ("tests/unit/server/test_engine_disagreements.py", "-k", "append_was_refused"),
    ),
    Mutant(
        "a worker that did not hear of a cancellation works on",
        "P-6",
        AGREEMENT,
        "        for run_id, fence in sorted(lasting[0])[:_RUNS_MAX]:\n"
        "            await self._stop(run_id, fence)\n",
        "",
        ("tests/unit/server/test_engine_disagreements.py", "-k", "nobody_heard"),
    ),
)
