"""Deliberate breaks, each of a guarantee, that the suite must catch.

They are listed by where they break something. `ARCHITECTURE.md` has the promises they belong to;
what fences, orders and bounds the rulings ask for on top of those is here under the promise it serves.
"""

from __future__ import annotations

from typing import Final

from mutant import Mutant
from mutants_agent import AGENTS
from mutants_clients import CLIENTS
from mutants_engines import ENGINES
from mutants_kept import KEPT
from mutants_outside import OUTSIDE
from mutants_server import SERVICES

MUTANTS: Final[tuple[Mutant, ...]] = (*ENGINES, *SERVICES, *AGENTS, *OUTSIDE, *KEPT, *CLIENTS)
