"""What an author writes runs with: tasks, their context, waits, steps, channels."""
