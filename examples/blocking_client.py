"""Talking to an agent from code without an event loop: a script, a shell, Flask, Django.

    everturn dev examples/assistant.py
    python examples/blocking_client.py
    flask --app examples/blocking_client run

`everturn.blocking` has the names of `everturn`, with calls that wait. A chat goes on wherever its
id and the number of the last record seen are known; here a cookie holds the one and a dictionary
the other.
"""

import uuid

from everturn import ChatSessionState, blocking

LAST_SEEN = {}  # chat id -> last_event_id; stands for a table of yours


def ask(chat_id: str, text: str) -> str:
    """The whole answer. Raises ChatTurnError when the agent failed to give one."""
    state = ChatSessionState(LAST_SEEN[chat_id]) if chat_id in LAST_SEEN else None
    with blocking.AgentChat("assistant", id=chat_id, session=state) as chat:
        stream = chat.send_message(text)
        answer = stream.text()
        LAST_SEEN[chat_id] = chat.session.last_event_id
        stream.raise_for_error()
        return answer


def create_app():
    from flask import Flask, make_response, request

    app = Flask("everturn-example")

    @app.post("/")
    def talk():
        chat_id = request.cookies.get("chat") or str(uuid.uuid4())
        response = make_response(ask(chat_id, request.get_data(as_text=True)))
        response.set_cookie("chat", chat_id)
        return response

    return app


if __name__ == "__main__":
    with blocking.AgentChat("assistant") as chat:
        for chunk in chat.send_message("hello"):
            if chunk["type"] == "text-delta":
                print(chunk["delta"], end="", flush=True)
        print()
        print(chat.send_message("and goodbye").text())
