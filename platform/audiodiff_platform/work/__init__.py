"""Sharded jobs: the plan of shards, their execution on Ray Data, and the sequence of steps common to all jobs."""
