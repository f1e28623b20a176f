"""`make bench [ROW=B-3]`: each row's figure beside its limit, measured in the same run.

The rows and their targets are those of the table "Speed and size". Benchmarks are not tests:
nothing fails because a machine is slow. Load generator, server and worker share the machine, so
trust the ratios, and repeat before believing them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {
    "B-1": ("b1_appends.py", "durable appends into the stream engine"),
    "B-3": ("b3_sse.py", "server-sent events delivered per core"),
    "B-4": ("b4_first_chunk.py", "client sends, first chunk back, warm run"),
    "B-5": ("b5_delivery.py", "delivery delay of many sessions"),
    "B-7": ("b7_parked.py", "suspended sessions held by one worker"),
    "B-9": ("b9_history.py", "a turn of a long conversation against one of a short one"),
    "B-11": ("b11_start.py", "start-up times"),
}


def main(arguments: list[str]) -> int:
    wanted = arguments or list(ROWS)
    unknown = [row for row in wanted if row not in ROWS]
    if unknown:
        print(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    failed = 0
    for row in wanted:
        script, what = ROWS[row]
        print(f"\n== {row}  {what}", flush=True)
        failed |= subprocess.run([sys.executable, str(HERE / script)], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
