"""Segmentation: class labels at every pixel."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from densepred.errors import ConfigurationError, DataError
from densepred.largest import largest_plane
from densepred.losses.bands import upsampled_labels
from densepred.losses.base import Loss
from densepred.losses.class_weights import ClassWeights, in_order, read_class_weights
from densepred.losses.fused import upsampled_cross_entropy
from densepred.losses.segmentation import BinaryCrossEntropyLoss, CrossEntropyLoss, register_weights
from densepred.metrics.segmentation import Mode, SegmentationMetrics, class_names
from densepred.palettes import VOID_COLOUR, voc_palette
from densepred.sample import VOID, Kind, pad_planes, valid_segmentation
from densepred.tasks.base import Batch, Task, parts


class Segmentation(Task):
    """Class labels: one of several a pixel, one of two, or any number at once.

    ============ ======== ============================ ======================= =========================
    mode         planes   target and prediction        default loss            a pixel's prediction
    ============ ======== ============================ ======================= =========================
    multiclass   C        (B, H, W), 0 .. C-1          cross-entropy           the largest plane
    binary       1        (B, H, W), 0 or 1            binary cross-entropy    1 where the plane is above 0
    multilabel   C        (B, C, H, W), 0 or 1         binary cross-entropy    1 where its plane is above 0
    ============ ======== ============================ ======================= =========================

    The output is logits. With cross-entropy neither training nor prediction builds them at full resolution: the
    loss is fused with the upsampling (`upsampled_cross_entropy`), labels are found by bands (`upsampled_labels`).

    Missing labels (255 in uint8, negative in wider integers) neither train nor count.

    A sample key `<name>_weight` of kind "weight" (float32, moved with the image), where the data have one, is the
    factor of each pixel's loss; the U-Net's map of borders between cells is such a one. Cross-entropy takes it in all
    modes, other losses are refused beside it. Metrics don't see it.

    Args:
        classes: Names in the order of the labels, or how many there are. In binary mode the two names, or only that of
            label 1.
        name: Sample key, output key and metric prefix.
        loss: Takes output and target; by default the one of the table.
        weight: Factor of its loss in the sum over tasks.
        mode: See the table.
        class_weights: One factor a class for the default loss, against imbalance: a list, factors by the classes'
            names, or FILE of `densepred check-data` (its median-frequency weights; FILE#inverse_frequency for the
            others). Checkpoints hold the numbers, and need the file no more. Multiclass: the loss is the weighted mean.
            Binary: only the ratio of the two counts. Multilabel: the factor of a class where it is present.
        palette: Colours (red, green, blue, 0 to 255), one a class; those of Pascal VOC by default.

    Raises:
        ConfigurationError: If names, weights or colours don't fit the classes, or they or the loss the mode.

    Example:
        >>> task = Segmentation(["floor", "wall", "chair"])
        >>> task.predict(torch.tensor([0.1, 2.0, -1.0]).view(1, 3, 1, 1))
        tensor([[[1]]], dtype=torch.uint8)
    """

    kind = Kind.LABEL
    monitor = ("miou", "max")
    shown = ("miou",)

    def __init__(
        self,
        classes: int | list[str],
        name: str = "segmentation",
        loss: Loss | None = None,
        weight: float = 1.0,
        mode: Mode = "multiclass",
        class_weights: ClassWeights | None = None,
        palette: list[list[int]] | None = None,
    ) -> None:
        names = class_names(classes, mode)
        if isinstance(class_weights, str):
            class_weights = read_class_weights(class_weights)
            if "class_weights" in self.init_args:  # a derived class may fill it in itself
                self.init_args["class_weights"] = class_weights
        for what, given in (("class_weights", class_weights), ("palette", palette)):
            if given is not None and len(given) != len(names):
                raise ConfigurationError(
                    f"Segmentation: {what} has {len(given)} entries for {len(names)} classes ({', '.join(names)}). "
                    "Give one a class."
                )
        if palette is not None and not all(len(c) == 3 and all(0 <= part <= 255 for part in c) for c in palette):
            raise ConfigurationError(f"Segmentation: palette wants [red, green, blue] of 0 to 255; got {palette}.")
        if loss is not None and class_weights is not None:
            raise ConfigurationError(
                "Segmentation: class_weights belong to the default loss, but `loss` is given too. Give the weights to "
                f"{type(loss).__name__} (where it takes some), or leave `loss` out."
            )
        planes = 1 if mode == "binary" else len(names)
        if loss is None:
            numbers = list(class_weights.values()) if isinstance(class_weights, dict) else class_weights
            loss = _default_loss(mode, numbers)
        super().__init__(name, planes, loss, weight)
        _check_loss(loss, planes, mode)
        self.classes = names
        self.mode = mode
        self.palette = voc_palette(len(names)) if palette is None else palette
        self._own_weights = class_weights
        self._unplaced: list[str] = []
        self._place_weights(names, made_up=isinstance(classes, int))

    def place_weights(self, classes: list[str]) -> None:
        """Brings class weights that were given by name into the order of the classes.

        Raises:
            ConfigurationError: If they were made for other classes.
        """
        self._place_weights(classes, made_up=False)

    def _place_weights(self, classes: list[str], made_up: bool) -> None:
        own = self._own_weights
        given = [part.named_weights for part in parts(self.loss) if part.named_weights is not None]
        by_name = [weights for weights in [own, *given] if isinstance(weights, dict)]
        # the data will tell the names; made-up ones are those of `densepred check-data` too
        self._unplaced = [name for weights in by_name for name in weights if made_up and name not in classes]
        if self._unplaced:
            return
        where = f"Task {self.name!r}"
        if isinstance(own, dict):
            self.loss = _default_loss(self.mode, list(in_order(own, classes, where).values()))
        for part in parts(self.loss):
            if part.named_weights is not None:
                placed = in_order(part.named_weights, classes, where)
                register_weights(part, "class_weights", placed)

    def _refuse_unplaced_weights(self) -> None:
        if self._unplaced:
            raise ConfigurationError(
                f"Task {self.name!r}: class_weights are given by name ({', '.join(self._unplaced)}), but the task "
                "knows only the number of its classes, and the data don't name them. Give the task's `classes` by name."
            )

    @property
    def fused(self) -> bool:
        """Whether the loss is cross-entropy, which need not see planes of full resolution."""
        return self.mode == "multiclass" and type(self.loss) is CrossEntropyLoss

    def activate(self, planes: Tensor) -> Tensor:
        """The planes themselves: logits."""
        return planes

    @property
    def distribution(self) -> Literal["exclusive", "independent"]:  # type: ignore[override]
        """One of several labels, or each label by itself."""
        return "exclusive" if self.mode == "multiclass" else "independent"

    def evidence(self, output: Tensor) -> Tensor:
        """Logits to probabilities: softmax over the planes, or a sigmoid of each."""
        return output.softmax(1) if self.mode == "multiclass" else output.sigmoid()

    def predict(self, output: Tensor) -> Tensor:
        """Logits to labels, in the sample's format: uint8 where the classes fit, else int32."""
        if self.mode == "multiclass":
            return largest_plane(output, self._label_dtype)
        present = (output > 0).to(torch.uint8)
        return present[:, 0] if self.mode == "binary" else present

    def decide(self, evidence: Tensor) -> Tensor:
        """Probabilities to labels: the most probable one, or those that are more probable than not."""
        return self.predict(evidence if self.mode == "multiclass" else evidence - 0.5)

    def predict_from_planes(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """Planes at the decoder's own stride to labels, one of several by bands."""
        if self.mode == "multiclass":
            return upsampled_labels(planes, size, self._label_dtype)
        return super().predict_from_planes(planes, size)

    def pad(self, batch: Batch, size: tuple[int, int]) -> Batch:
        """The labels padded with "missing", and their weights, where there are some, with 0."""
        weights = batch.get(self._weight_key)
        padded = super().pad(batch, size)
        return padded if weights is None else padded | {self._weight_key: pad_planes(weights, size, Kind.WEIGHT)}

    def compute_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Logits at the image's size to a scalar."""
        self._refuse_unplaced_weights()
        weights = self._pixel_weights(batch)
        try:
            if weights is None:
                return super().compute_loss(output, batch)
            loss: Tensor = self.loss(output, self.target(batch), weights)
            return loss
        except DataError as error:
            raise self._named(error, batch) from None

    def loss_from_planes(self, planes: Tensor, batch: Batch) -> Tensor:
        """Planes at the decoder's own stride to a scalar, fused with the upsampling where the loss allows."""
        if not isinstance(self.loss, CrossEntropyLoss) or not self.fused:
            return super().loss_from_planes(planes, batch)
        self._refuse_unplaced_weights()
        target, size = self.target(batch), tuple(batch["image"].shape[-2:])
        if target.shape[-2:] != size:
            raise ConfigurationError(
                f"Task {self.name!r}: labels of size {tuple(target.shape)} for images of {size[0]} x {size[1]}. Labels "
                "and images must be padded alike."
            )
        weights = self._pixel_weights(batch)
        try:
            return upsampled_cross_entropy(planes, target, self.loss.class_weights, self.loss.label_smoothing, weights)
        except DataError as error:
            raise self._named(error, batch) from None

    @property
    def _weight_key(self) -> str:
        return f"{self.name}_weight"

    def _pixel_weights(self, batch: Batch) -> Tensor | None:
        """The factor of each pixel (B, H, W), where the batch has one."""
        weights: Tensor | None = batch.get(self._weight_key)
        if weights is not None and not self.loss.takes_pixel_weights:
            raise ConfigurationError(
                f"Task {self.name!r}: the samples hold {self._weight_key!r}, a weight for each pixel, which "
                f"{type(self.loss).__name__} does not take. Leave `loss` out for the mode's cross-entropy, or let the "
                "data yield no weights."
            )
        return None if weights is None else weights.squeeze(1)

    def _named(self, error: DataError, batch: Batch) -> DataError:
        images = ", ".join(batch["name"]) if "name" in batch else "without names"
        return DataError(f"Task {self.name!r}: {error} The images of this batch: {images}.")

    @property
    def _label_dtype(self) -> torch.dtype:
        return torch.uint8 if len(self.classes) <= VOID else torch.int32

    def known(self, target: Tensor) -> Tensor:
        """True where the label is known."""
        return valid_segmentation(target, len(self.classes) if self.mode == "multiclass" else 2)

    def constant_statistic(self, target: Tensor) -> Tensor:
        """How often each label occurs (classes,); in multilabel mode how often each class is absent, present (2, C)."""
        known = self.known(target)
        if self.mode == "multilabel":
            present = (known & (target == 1)).sum((0, 2, 3))
            return torch.stack([known.sum((0, 2, 3)) - present, present]).cpu().double()
        labels = target[known & (target < len(self.classes))].long().cpu()
        return torch.bincount(labels, minlength=len(self.classes)).double()

    def constant_prediction(self, statistic: Tensor, target: Tensor) -> Tensor:
        """The most frequent label everywhere; in multilabel mode the more frequent answer for each class."""
        answer = statistic.argmax(0).to(target.device, self._label_dtype)
        return (
            answer.view(1, -1, 1, 1).expand(target.shape) if self.mode == "multilabel" else answer.expand(target.shape)
        )

    def metrics(self, stage: str) -> Metric:
        """IoU and accuracies, from one confusion matrix over the set."""
        return SegmentationMetrics(self.classes, self.mode)

    def render(self, prediction: Tensor) -> Tensor:
        """Labels in the palette's colours, missing ones cream; multilabel: the mean colour of what is present."""
        table = torch.tensor([*self.palette, list(VOID_COLOUR)], dtype=torch.uint8, device=prediction.device)
        known = self.known(prediction)
        if self.mode == "multilabel":
            present = (known & (prediction == 1)).float()
            colours = torch.einsum("bchw,cr->brhw", present, table[:-1].float())
            mean = (colours / present.sum(1, keepdim=True).clamp(min=1)).round().to(torch.uint8)
            return torch.where(known.any(1, keepdim=True), mean, table[-1].view(1, 3, 1, 1))
        void = len(self.classes)
        index = torch.where(known, prediction.long(), void).clamp(max=void)
        return table[index].permute(0, 3, 1, 2).contiguous()


def _default_loss(mode: Mode, class_weights: list[float] | None) -> Loss:
    if mode == "multiclass":
        return CrossEntropyLoss(class_weights)
    if mode == "binary" and class_weights is not None:
        absent, present = class_weights
        if absent <= 0:
            raise ConfigurationError(f"Segmentation: class_weights={class_weights}; binary mode divides by the first.")
        return BinaryCrossEntropyLoss([present / absent])
    return BinaryCrossEntropyLoss(class_weights)


def _check_loss(loss: Loss, planes: int, mode: Mode) -> None:
    """Refuses a loss that asks another question than the mode, and weights that are not one a plane."""
    for part in parts(loss):
        if part.exclusive not in (None, mode == "multiclass"):
            fitting = "binary or multilabel mode" if mode == "multiclass" else "multiclass mode"
            raise ConfigurationError(
                f"Segmentation: {type(part).__name__} is for {fitting}; the mode is {mode}. Leave `loss` out for that "
                "of the mode, or change the mode."
            )
        for key in ("class_weights", "positive_weights"):
            weights = getattr(part, key, None)
            if isinstance(weights, Tensor) and len(weights) != planes:
                raise ConfigurationError(
                    f"Segmentation: {key} of {type(part).__name__} has {len(weights)} entries for {planes} planes. "
                    "Give one a class."
                )
