"""The load test: a black-box client, process killer and audit, which imports nothing else of netwatch."""
