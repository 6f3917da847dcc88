"""Run a study of notebooks: plan the graph, execute it, gather the results; README.md says how."""
