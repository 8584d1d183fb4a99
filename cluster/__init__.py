"""Where it runs: the command line, job submission, serving, preflight."""
