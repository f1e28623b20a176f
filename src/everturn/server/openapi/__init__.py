"""The OpenAPI document of a server: what its routes take and answer, made from the routes.

    answers.py      the shapes of answers; shapes of requests are those the routes decode with
    operations.py   per handler: what the code of a route does not say by itself
    document.py     routes + operations + types -> the document

Paths, methods, credentials, caps and CORS come from the table of routes in `server/app.py` and from
those of the channels and run streams; a summary is the first sentence of a handler's docstring.
A handler without an operation, and an operation without a route, fail a test.
"""
