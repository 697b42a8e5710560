"""Why a network errs: the channels that speak for its classes, and where they look."""
