"""Memory: what must outlive a process. Ports say what engines promise; folders are engines."""
