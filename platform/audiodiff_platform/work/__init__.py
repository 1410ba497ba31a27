"""Sharded jobs: plan, Ray Data, attempts, and the sequence that all of them share."""
