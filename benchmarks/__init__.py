"""Throughput against peers: one process, interleaved rounds, CPU time, ratios of medians."""
