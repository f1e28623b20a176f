"""Direct writes by clients of the original, which speak to a store and not to this API.

    endpoint.py      the write endpoint: framed sessions, and single appends (wire-protocol §7)
    first_bytes.py   one port for two protocols: what a connection says first decides
    http2.py         HTTP/2 by prior knowledge, handed to the same application
    http2_stream.py  one request of it

From Node those clients insist on HTTP/2 without a negotiation, which the server below speaks HTTP/1.1
only. So a connection that begins with HTTP/2's `PRI` is taken over; every other one stays where it
was. Tickets, and what a write does, are `server/services/direct.py`.
"""
