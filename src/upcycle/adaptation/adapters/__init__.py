"""Small sets of parameters that train beside a frozen network and are merged into its weights."""
