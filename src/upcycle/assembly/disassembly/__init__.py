"""The steps of disassembling a classifier: contributions of channels, decision routes, components."""
