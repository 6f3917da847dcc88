"""Run a study: plan the graph, execute its notebooks, gather its results."""
