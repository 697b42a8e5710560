"""Attention diversification: channels that look at different spots, so that a network holds up on an unseen domain."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.heads import classifier, linear
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.taps import Taps, observed

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

POSITIONS = 49
"""Of the last map in the paper's setting (ResNet-50, 224 x 224), which its inter weights are for."""

# -- intra-model regulariser ----------------------------------------


def attention(f: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c p"]:
    """Give A, where each channel looks: the softmax over the p = h w positions, in float32 or better."""
    wide = torch.float64 if f.dtype == torch.float64 else torch.float32
    return f.to(wide).flatten(2).softmax(2)


def select_top(a: Float[Tensor, "n c p"], k: int) -> Float[Tensor, "n p"]:
    """Give R, at each position the mean of the k largest values over channels."""
    return a.topk(k, dim=1).values.mean(1)


def intra_loss(a: Float[Tensor, "n c p"], k: int) -> Float[Tensor, ""]:
    """Give L_intra = 1 - mean_{n,p} R, in [0, 1].

    0 when every position is the sole focus of k channels, 1 - 1/p when all channels have one and the same focus.
    """
    return 1 - select_top(a, k).mean()


def channels_each(c: int, h: int, w: int) -> int:
    """Choose k for a last map c x h x w: the channels that there are for each of 2h x 2w positions, at least 1.

    For ResNet-50's 2048 x 7 x 7 that is the paper's 10.
    """
    return max(1, round(c / (4 * h * w)))


# -- inter-model regulariser ----------------------------------------


def union_attention(v: Float[Tensor, "m n p"], members: Bool[Tensor, "m n"]) -> Float[Tensor, "n p"]:
    """Give U, for each sample the largest attention among the member models, position by position; 0 without a member.

    No gradient goes there.
    """
    return torch.where(members[:, :, None], v.detach(), 0).amax(0)


def inter_losses(
    v: Float[Tensor, "m n p"], right: Bool[Tensor, "m n"], t: float = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Give L_dir and L_dvr of one stage: mean_{n,p} (V_0 1[U > 0] - t U)² with U⁺ (t = 1) and with U⁻.

    The stage's factor C_l is not in them. As a softmax is positive, 1[U > 0] chooses samples, not positions.

    Args:
        v: attention of the m models in this stage; the first one is the student's, which alone gets a gradient.
        right: whether a model's most probable class is the label. U⁺ is the union of those that are right, U⁻ that
            of the others.
        t: factor of U⁻; 1 moves away from it when L_dvr is subtracted, 0 is the released code.
    """

    def gap(members: Tensor, t: float) -> Tensor:
        u = union_attention(v, members)
        return (v[0] * (u > 0) - t * u).square().mean()

    return gap(right, 1.0), gap(~right, t)


# -- where a network's maps are ----------------------------------------


class Maps(NamedTuple):
    """Submodules by name, as :func:`find_maps` finds them, and the size (c, h, w) of the last map X."""

    classifier: str
    last: str
    stages: tuple[str, ...]
    shape: tuple[int, int, int]


def find_maps(model: Model, layers: tuple[str, ...] = ()) -> Maps:
    """Find the classifier of ``model``, the map X whose mean it reads, and its stages.

    Args:
        model: the network; it is run once on an example.
        layers: names of the stages; by default for each of the last four resolutions the last map that has it.

    Raises:
        UserError: the logits are not cls(GAP(X)) of a map X that some submodule gives, or a layer gives no map.
    """
    head = classifier(model)
    calls = observed(model)
    pooled = next(call.input for call in calls if call.name == head)
    times = Counter(call.name for call in calls)  # a submodule that runs twice has no one map
    maps = {
        name: f
        for name, _, _, f in calls
        if isinstance(f, Tensor) and f.ndim == 4 and f[0, 0].numel() > 1 and times[name] == 1
    }
    ends = [
        name
        for name, f in maps.items()
        if f.shape[:2] == pooled.shape and torch.allclose(f.mean((2, 3)), pooled, rtol=1e-3, atol=1e-5)
    ]
    require(
        bool(ends),
        f"The classifier '{head}' of {model.name} does not read the mean over positions of a map of "
        "more than one position that a submodule gives; choose a network with global average pooling and larger "
        "images, such as a ResNet.",
    )
    before = list(maps)[: list(maps).index(ends[-1]) + 1]
    for name in layers:
        require(
            name in maps,
            f"'{name}' is no submodule of {model.name} that runs once and gives a map (b, c, h, w); "
            f"for example {', '.join(before[-3:])} are.",
        )
    by_size = {maps[name].shape[2:]: name for name in before}
    c, h, w = maps[ends[-1]].shape[1:]
    return Maps(head, ends[-1], layers or tuple(by_size.values())[-4:], (c, h, w))


class Expanded(nn.Module):
    """A network with the training-only branch: Z = ReLU(InstanceNorm(ConvTranspose(X))), twice the height and width.

    Args:
        network: the network, taken over and not copied.
        maps: its classifier, last map and stages.
    """

    def __init__(self, network: nn.Module, maps: Maps) -> None:
        super().__init__()
        self.network, self.maps = network, maps
        c = maps.shape[0]
        self.expansion = nn.Sequential(nn.ConvTranspose2d(c, c, 2, stride=2), nn.InstanceNorm2d(c), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """y = cls(GAP(X)) (n, k), y' = cls(GAP(Z)) by the same classifier, Z, and the maps F^l of the stages."""
        with Taps(self.network, (self.maps.last, *self.maps.stages)) as taps:
            y = self.network(images)
        z = self.expansion(taps[self.maps.last])
        y_z = linear(self.network, self.maps.classifier)(z.mean((2, 3)))
        return y, y_z, z, [taps[name] for name in self.maps.stages]


@dataclass(kw_only=True, eq=False, repr=False)
class AttentionDiversification(Method):
    """Attention Diversification for Domain Generalization (Meng et al., ECCV 2022; arXiv:2210.04206).

    The training images come from S source domains with one label set; none is needed of the domain to come. With X the
    last map, Z its learned expansion to twice the height and width, and one classifier for both,

        L_cls = 1/2 [CE(cls(GAP(X))) + CE(cls(GAP(Z)))],

    L_intra of :func:`intra_loss` on the attention of Z, and L_dir, L_dvr of :func:`inter_losses` summed over stages
    with the factor C_l on V^l = mean over channels of the attention of F^l:

    1. for each domain a network M_s, trained on it alone with L_cls + w_intra L_intra;
    2. M_0, the same on all of them;
    3. M_0 goes on with L_cls + w_intra L_intra + w_dir L_dir - w_dvr L_dvr, while M_1 .. M_S are fixed.

    Each regulariser is added in a random fraction of the iterations, drawn for each by itself. Stage 2 alone is
    Intra-ADR, all three are I²-ADR. The expansion, with its 4 C² weights, is not part of the product.

    V is near 1/P where P is the number of positions, so L_dir and L_dvr go with 1/P²: both of their weights are
    multiplied by (P / 49)² of the last map, which is 1 in the paper's setting (our rule; nothing is done about C_l,
    which makes up for the mean over channels).

    Departures: M_1 .. M_S answer in eval mode (the released trainer leaves them in training mode, so that their
    BatchNorms move). U⁻ counts in L_dvr (the released code multiplies it by 0: ``dvr_target="zero"``); which of the two
    made the paper's figures is unknown. The expansion begins as torch's layers do, not by He's rule: an
    InstanceNorm follows, so that the scale of its weights does not count. MixStyle, which the paper combines it with,
    is left out: it mixes the samples of a batch and is a method of its own.

    Args:
        student: a convolutional network, best a pretrained one, whose logits are a linear layer of the mean over
            positions of its last map.
        domains: int64 (n,), which of the domains 0 .. S-1 each training image comes from.
        k: number of channels averaged at each position of L_intra; 0 takes :func:`channels_each` of the last map.
        w_intra: weight of L_intra.
        p_intra: share of the iterations of stages 1 and 2 in which L_intra is added, from 0 to 1.
        p_intra_inter: share of the iterations of stage 3 in which L_intra is added, from 0 to 1.
        w_dir: weight of L_dir on a last map of 49 positions.
        w_dvr: weight of L_dvr on a last map of 49 positions.
        p_inter: share of the iterations of stage 3 in which L_dir and L_dvr are added, from 0 to 1.
        dvr_target: union moves away from what misled the models that are wrong, zero sharpens the own attention there.
        layers: names of the stages compared; by default the last map of each of the last four resolutions.
        epochs_domain: epochs of stage 1; 0 leaves out stages 1 and 3.
        epochs_inter: epochs of stage 3, at least 1; ``epochs_domain=0`` leaves it out.
        lr_inter: learning rate of stage 3.
        recipe: ordinary training in stage 2, and in stage 1 with its own epochs.
    """

    student: Model | nn.Module
    domains: Tensor
    k: int = 0
    w_intra: float = 0.05
    p_intra: float = 0.33
    p_intra_inter: float = 0.2
    w_dir: float = 200.0
    w_dvr: float = 1.0
    p_inter: float = 0.2
    dvr_target: Literal["union", "zero"] = "union"
    layers: tuple[str, ...] = ()
    epochs_domain: int = 30
    epochs_inter: int = 20
    lr_inter: float = 0.0005
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=150, lr=0.008, weight_decay=4e-4))

    roles = ("student",)
    given = ("domains",)
    card = Card(
        name="attentiondiversification",
        title="Attention Diversification for Domain Generalization",
        paper="Meng, Li, Chen, Yang, Song, Wang, Zhang, Song, Xie, Pu; ECCV 2022; arXiv:2210.04206",
        verb="adapt",
        needs=Needs(
            data="labelled", teacher="none", architectures="a CNN that ends in average pooling and one linear layer"
        ),
        summary="A classifier trained on several domains for one never seen: its channels look at different spots.",
        cost="two trainings of the network (one for each domain alone, one for all) and a short third",
        published="state of the art on PACS, Office-Home and others (abstract; no table could be read)",
    )
    refuses = {"any": "several networks train in turn, on losses of attention"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a domain that nobody has seen yet."""
        if have.goal != "domain":
            return None
        if have.source == "none":
            return "it needs labelled images of two old domains or more (--source labelled), and none of the new one."
        reason = (
            "for a domain that nobody has seen yet: one network is trained on several labelled domains, so that its "
            "channels look at different places; DATA only measures."
        )
        return Fit(40, reason, networks="--student STUDENT --source_data SOURCE1,SOURCE2")

    def __post_init__(self) -> None:
        d = self.domains
        require(
            d.ndim == 1 and d.dtype == torch.int64 and len(d) > 0 and int(d.min()) >= 0,
            "domains must hold one whole number from 0 for each training image (int64).",
        )
        counts = torch.bincount(d).tolist()
        require(
            len(counts) >= 2,
            "domains names a single domain, and attention diversification compares at least two; "
            "give images of a second one.",
        )
        few = [str(s) for s, n in enumerate(counts) if n < 2]
        require(
            not few,
            f"Every domain needs two images or more; number {', '.join(few[:3])} has fewer. "
            "Number the domains 0, 1, 2, ...",
        )
        ranges(
            self,
            not_negative=("k", "w_intra", "w_dir", "w_dvr", "epochs_domain"),
            share=("p_intra", "p_intra_inter", "p_inter"),
            at_least={"epochs_inter": 1},
            positive=("lr_inter",),
            one_of={"dvr_target": ("union", "zero")},
        )
        self.layers = tuple(self.layers)

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """A student, and four images of two domains."""
        return {**super().stand_ins(), "domains": torch.tensor([0, 0, 1, 1])}

    def check(self, data: Images) -> list[str]:
        """A domain and a label for each training image, and a network that has the maps."""
        student, problems = self.model("student", data), []
        if len(self.domains) != len(data.train):
            problems.append(
                f"domains holds {len(self.domains)} numbers, and there are {len(data.train)} training "
                "images: give one for each, in their order"
            )
        if unknown := int((data.train.labels < 0).sum()):
            problems.append(f"it learns from labels, and {unknown} of {len(data.train)} training images have none")
        if len(student.classes) != len(data.classes) or student.input_shape[0] != data.shape[0]:
            problems.append(
                f"the student has {student.input_shape[0]} channels and {len(student.classes)} classes, "
                f"the data {data.shape[0]} and {len(data.classes)}: build it for them"
            )
        try:
            c = find_maps(student, self.layers).shape[0]
            require(
                self.k <= c, f"k is {self.k}, and the last map of {student.name} has {c} channels; choose a smaller k."
            )
        except UserError as error:
            problems.append(str(error).rstrip("."))
        return problems

    def steps(self, n: int) -> int:
        """All stages; a network of one domain makes as many updates as its images ask for."""
        stage2 = self.recipe.steps(n)
        if not self.epochs_domain:
            return stage2
        stage1, stage3 = self._recipe(self.epochs_domain), self._recipe(self.epochs_inter)
        return sum(stage1.steps(count) for count in torch.bincount(self.domains).tolist()) + stage2 + stage3.steps(n)

    def _recipe(self, epochs: int, lr: float | None = None) -> Recipe:
        warmup = min(self.recipe.warmup, epochs)
        return dataclasses.replace(self.recipe, epochs=epochs, lr=lr or self.recipe.lr, warmup=warmup)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns M_0 without the expansion."""
        student = self.model("student", data)
        data, maps = data.normalised(student.mean, student.std), find_maps(student, self.layers)
        experts: list[nn.Module] = []
        if self.epochs_domain:
            for s in range(int(self.domains.max()) + 1):
                part = data.train.subset((self.domains == s).nonzero()[:, 0])
                trained = self._stage(run, f"domain {s}", data, part, self._recipe(self.epochs_domain), maps)
                experts.append(trained.network)
        m0 = self._stage(run, "all domains", data, data.train, self.recipe, maps)
        if experts:
            recipe = self._recipe(self.epochs_inter, self.lr_inter)
            m0 = self._stage(run, "inter", data, data.train, recipe, maps, m0, experts)
        return m0.network

    def _stage(
        self,
        run: Run,
        name: str,
        data: Images,
        split: ImageSplit,
        recipe: Recipe,
        maps: Maps,
        start: Expanded | None = None,
        experts: Sequence[nn.Module] = (),
    ) -> Expanded:
        """The network of one stage, from ``start`` or else from the student as it was given."""
        made = self._expanded(data, maps)
        state = run.stored(name, weights_of(made))
        if state is None:
            with run.open_stage(name) as state:
                begun = start or self._expanded(data, maps)
                state |= self._train(run, data, split, recipe, begun, experts).state_dict()
        run.plain(made).load_state_dict(state)
        return made

    def _expanded(self, data: Images, maps: Maps) -> Expanded:
        return Expanded(copy_of(self.model("student", data).module).requires_grad_(True), maps)

    def _train(
        self, run: Run, data: Images, split: ImageSplit, recipe: Recipe, start: Expanded, experts: Sequence[nn.Module]
    ) -> nn.Module:
        """One stage; the third where there are experts M_1 .. M_S."""
        c, h, w = start.maps.shape
        k, scale = self.k or channels_each(c, h, w), (h * w / POSITIONS) ** 2
        p_intra = self.p_intra_inter if experts else self.p_intra
        fixed = [self._fixed(run, data, m) for m in experts]

        m0, optimizer = run.setup(start, recipe)
        for _ in run.epochs(recipe.epochs):
            m0.train()
            for images, labels, _ in run.batches(split, recipe.batch_size):
                recipe.schedule_rate(optimizer, run.progress)
                y, y_z, z, f = m0(images)
                loss = classification = 0.5 * (ce_loss(y, labels) + ce_loss(y_z, labels))
                if self.w_intra and _heads(run, "intra", p_intra):
                    intra = intra_loss(attention(z), k)
                    loss = loss + self.w_intra * intra
                    run.track(intra=intra)
                if fixed and _heads(run, "inter", self.p_inter):
                    direct, diverge = self._inter(y, f, labels, images, fixed, start.maps.stages)
                    loss = loss + scale * (self.w_dir * direct - self.w_dvr * diverge)
                    run.track(direct=direct, diverge=diverge)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=classification)
            run.evaluate(m0.network, data.validation)
        return run.plain(m0)

    def _fixed(self, run: Run, data: Images, expert: nn.Module) -> Frozen:
        """M_s made fast; its BatchNorms stay, so that every tap gives what the student's gives."""
        images = data.validation.batch(torch.arange(min(64, len(data.validation))), device=run.device).images
        precision = "64-true" if run.precision == "64-true" else run.teacher_precision
        return frozen(expert, images, keep_bn=True, keep_modules=True, precision=precision)

    def _inter(
        self, y: Tensor, f: list[Tensor], labels: Tensor, images: Tensor, fixed: list[Frozen], stages: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """L_dir and L_dvr, summed over the stages with C_l."""
        right, maps = [y.argmax(1) == labels], [f]
        for m in fixed:
            with Taps(m.network, stages) as taps:
                right.append(m(images).argmax(1) == labels)
            maps.append([taps[name] for name in stages])
        gate, t = torch.stack(right), 1.0 if self.dvr_target == "union" else 0.0
        direct = diverge = torch.zeros((), device=y.device)
        for same in zip(*maps, strict=True):  # the maps of one stage, of all models
            v = torch.stack([attention(one).mean(1) for one in same])
            l_dir, l_dvr = inter_losses(v, gate, t)
            direct, diverge = direct + same[0].shape[1] * l_dir, diverge + same[0].shape[1] * l_dvr
        return direct, diverge


def _heads(run: Run, name: str, p: float) -> bool:
    """A coin that shows heads with probability p: the same on every process, and after a resume."""
    return float(torch.rand((), generator=run.generator(f"{name} at {run.progress}"))) < p
