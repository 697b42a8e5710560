"""Rules of ``upcycle advise``, a file a goal."""
