"""Communication: the ports that methods use, and what keeps a job of many ranks together."""
