"""The commands, each as a function with the same name."""

DEFAULT_METHOD = {
    "distill": "kd",
    "disassemble": "mda",
    "assemble": "mdaassembly",
    "reassemble": "dery",
    "adapt": "ssf",
    "extend": "derpp",
    "treat": "modeldoctor",
}
"""The method that each verb takes when none is named."""

BASELINE = "plain"
"""The method that learns from labels alone, which stands beside those that take more."""

RARE = "crt"
"""The method of treat that diagnose names where recall follows the number of training images."""
