"""Your agents as tools of somebody else's assistant.

    everturn dev examples/assistant.py
    python examples/assistant_tools.py

Assistants that speak the Model Context Protocol start `everturn mcp` themselves; their setting is
`{"command": "everturn", "args": ["mcp"]}` (`pip install "everturn[mcp]"`, `--read-only` to look
only). This is the same from Python, for a host of your own: four functions, whose docstrings are
what its model reads.
"""

import asyncio

from everturn.mcp import ChatTools


async def host() -> None:
    tools = ChatTools()
    print([agent["id"] for agent in await tools.list_agents()])
    started = await tools.start_agent_chat("assistant", "from-elsewhere")
    print(started)
    print(await tools.send_agent_message("from-elsewhere", "hello there"))
    print(await tools.close_agent_chat("from-elsewhere"))


if __name__ == "__main__":
    asyncio.run(host())
