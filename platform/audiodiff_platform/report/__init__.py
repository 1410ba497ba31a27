"""HTML reports of training and generation runs."""
