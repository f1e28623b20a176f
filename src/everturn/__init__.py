"""everturn: durable sessions for AI agents."""
