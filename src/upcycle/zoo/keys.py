"""Names of published weights and ours for them: patterns of :func:`re.sub` and replacements, each applied in turn.

Sources of the names: the logs of github.com/zhangzjn/EMO (``resources/EMO_1M/log_train.txt`` lists every parameter).
Those of MobileNetV2 with coordinate attention are its modules' at github.com/houqb/CoordAttention (``mbv2_ca.py``; what
``coordatt.py`` calls the same layers are our names).
Reconstructed: those of github.com/OliverRensu/Shunted-Transformer, from its modules, since its files were not at hand.
"""

from __future__ import annotations

Names = tuple[tuple[str, str], ...]

EMO: Names = (
    (r"\bstage0\.0\.convs\.0\.", "stem."),
    (r"\bstage0\.1\.conv_local\.conv\.", "stem.2."),
    (r"\bstage0\.1\.conv_local\.norm\.", "stem.3."),
    (r"\bstage0\.1\.se\.conv_", "stem.5."),
    (r"\bstage0\.1\.proj\.conv\.", "stem.6."),
    *((rf"\bstage{i}\.", f"stages.{i - 1}.") for i in range(1, 5)),
    (r"\.qk\.conv\.", ".attention.qk."),
    (r"\.v\.conv\.", ".expand.0."),
    (r"\.conv_local\.conv\.", ".depthwise.0."),
    (r"\.conv_local\.norm\.", ".depthwise.1."),
    (r"\.proj\.conv\.", ".project."),
    (r"\bnorm\.norm\.", "norm."),
    (r"\bhead\.", "linear."),
)

SHUNTED: Names = (
    *((rf"(?<!\d\.)(?<!attn\.)\bnorm{i}\.", f"stages.{i - 1}.norm.") for i in range(1, 5)),
    *((rf"\bpatch_embed{i}\.(conv|norm)\.", rf"stages.{i - 1}.embed.\1.") for i in range(1, 5)),
    *((rf"\bpatch_embed{i}\.proj\.", f"stages.{i - 1}.embed.conv.") for i in range(2, 5)),
    *((rf"\bblock{i}\.", f"stages.{i - 1}.blocks.") for i in range(1, 5)),
    *((rf"\.attn\.sr{i}\.", f".attention.merged.{i - 1}.merge.") for i in (1, 2)),
    *((rf"\.attn\.(norm|kv){i}\.", rf".attention.merged.{i - 1}.\1.") for i in (1, 2)),
    *((rf"\.attn\.local_conv{i}\.", f".attention.merged.{i - 1}.local.") for i in (1, 2)),
    (r"\.attn\.local_conv\.", ".attention.local."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".feed_forward.expand."),
    (r"\.mlp\.dwconv\.dwconv\.", ".feed_forward.local."),
    (r"\.mlp\.fc2\.", ".feed_forward.project."),
    (r"\bhead\.", "linear."),
)

TISODE: Names = (
    (r"^(?:net|downsampling_layers)\.([0134])\.", r"stem.\1."),
    (r"^(?:net\.6|net\.6\.odefunc|feature_layers)\.(conv|norm)([12])\.(?:_layer\.)?", r"field.\1\2."),
    (r"^(?:net\.9|fc_layers\.2)\.", "linear."),
)
"""Of github.com/HanshuYAN/TisODE, whose three networks for digits name their parts differently."""

_FIRST = (2, 4, 7, 11, 14, 17, 18)
"""The number of the first block of each stage from the second on, and one past the last."""
_BLOCKS = [(n, stage, n - first) for stage, first in enumerate(_FIRST[:-1], 1) for n in range(first, _FIRST[stage])]
MOBILENETV2_CA: Names = (
    (r"\bfeatures\.0\.0\.", "conv_stem."),
    (r"\bfeatures\.0\.1\.", "bn1."),
    *(
        (rf"\bfeatures\.1\.conv\.{i}\.", f"blocks.0.0.{name}.")
        for i, name in ((0, "conv_dw"), (1, "bn1"), (3, "conv_pw"), (4, "bn2"))
    ),
    *((rf"\bfeatures\.{n}\.conv\.", f"blocks.{stage}.{i}.") for n, stage, i in _BLOCKS),
    *(
        (rf"(\bblocks\.\d+\.\d+)\.{i}\.", rf"\1.{name}.")
        for i, name in ((0, "conv_pw"), (1, "bn1"), (3, "conv_dw"), (4, "bn2"), (6, "se"), (7, "conv_pwl"), (8, "bn3"))
    ),
    (r"\.se\.conv2\.", ".se.conv_h."),
    (r"\.se\.conv3\.", ".se.conv_w."),
    (r"\bconv\.0\.", "conv_head."),
    (r"\bconv\.1\.", "bn2."),
    (r"\bclassifier\.1\.", "classifier."),
)
