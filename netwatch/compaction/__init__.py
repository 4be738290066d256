"""`netwatch compact`: an hour's small objects of all hosts become few large ones, in the bucket only."""
