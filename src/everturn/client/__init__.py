"""The client: asks a server over HTTP. Sessions, channels, chats, runs and tokens, from outside."""
