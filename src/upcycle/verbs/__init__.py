"""The verbs: what the command line and `import upcycle` offer."""
