"""Sharded jobs: plan of the shards, execution on Ray Data, and the steps that all jobs share."""
