"""Measures netwatch and a peer side by side; it imports nothing of the rest of netwatch, and runs it as a user does."""
