"""The `Reducer` port: dense sums over all workers."""
