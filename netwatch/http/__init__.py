"""The door: what workers run. Nothing here touches the disk; the link to the writer is handed in."""
