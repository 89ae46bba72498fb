"""What is looked at: plots, the explorer and its controls, explanations, exported files."""
