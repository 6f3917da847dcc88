"""Speed and memory of the ranking core, side by side with the obvious alternatives."""
