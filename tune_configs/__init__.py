"""Every YAML of the project, and the code that loads and checks it."""
