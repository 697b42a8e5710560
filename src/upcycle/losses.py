"""Losses of all methods as pure functions of tensors, for a training loop of one's own.

Each is the function that its method calls, by the same name; where two methods have one name, one of them is renamed
here. Shapes stand in the signatures, the paper and the symbols in the docstrings.
"""

from upcycle.adaptation.attention_diversification import inter_losses, intra_loss
from upcycle.adaptation.ba3us import alignment_loss, suppression_loss
from upcycle.adaptation.beta import soft_cross_entropy
from upcycle.adaptation.black_box.training import distil_loss
from upcycle.adaptation.cmae import contrast_loss, reconstruction_loss
from upcycle.adaptation.test_time.losses import entropy_loss, rotation_loss, turn_loss
from upcycle.assembly.swapping.regress import imitation_loss
from upcycle.continual.coca import distillation_loss, equivariance_loss, invariance_loss, supcon_loss
from upcycle.continual.embeddings.prototypes import prototype_loss
from upcycle.continual.embeddings.two_views import barlow_twins_loss, simsiam_loss
from upcycle.continual.lwf import old_loss
from upcycle.continual.protocol.replay import logit_loss
from upcycle.core.losses import ce_loss, contrastive_loss, divergence, information, kd_loss, kd_objective
from upcycle.diagnosis.bags import group_loss
from upcycle.diagnosis.model_doctor import channel_loss, spatial_loss
from upcycle.distillation.bootstrapvit import feature_loss
from upcycle.distillation.data_free.inversion import bn_loss, decision_adversarial
from upcycle.distillation.deepinversion import js_divergence, total_variation
from upcycle.distillation.factorgcn import disentangling_loss, soft_loss
from upcycle.distillation.features import attention_loss, hint_loss, relation_loss
from upcycle.distillation.ltl import local_loss, output_loss
from upcycle.distillation.netgraft import normalised_logit_loss
from upcycle.distillation.onestagegan import balance_loss
from upcycle.distillation.tfkd import reg_loss
from upcycle.distillation.tinymim import relation_loss as token_relation_loss

__all__ = [
    "alignment_loss",
    "attention_loss",
    "balance_loss",
    "barlow_twins_loss",
    "bn_loss",
    "ce_loss",
    "channel_loss",
    "contrast_loss",
    "contrastive_loss",
    "decision_adversarial",
    "disentangling_loss",
    "distil_loss",
    "distillation_loss",
    "divergence",
    "entropy_loss",
    "equivariance_loss",
    "feature_loss",
    "group_loss",
    "hint_loss",
    "imitation_loss",
    "information",
    "inter_losses",
    "intra_loss",
    "invariance_loss",
    "js_divergence",
    "kd_loss",
    "kd_objective",
    "local_loss",
    "logit_loss",
    "normalised_logit_loss",
    "old_loss",
    "output_loss",
    "prototype_loss",
    "reconstruction_loss",
    "reg_loss",
    "relation_loss",
    "rotation_loss",
    "simsiam_loss",
    "soft_cross_entropy",
    "soft_loss",
    "spatial_loss",
    "supcon_loss",
    "suppression_loss",
    "token_relation_loss",
    "total_variation",
    "turn_loss",
]
