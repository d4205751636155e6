"""Mathematics without communication: flat vectors, optimisers, schedules, random streams."""
