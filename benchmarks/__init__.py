"""Speed and memory, with peers where they are installed; README.md has the results."""
