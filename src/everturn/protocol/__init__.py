"""Words: what may be said on the wire. No I/O in here, and nothing that decides."""
