"""Reports: pages that show a run."""
