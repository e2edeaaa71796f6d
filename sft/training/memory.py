"""Predicts the most memory a process of a run will hold, on a GPU or in RAM, before any weight is loaded; and reads it.

In: a recipe and its dataset card. Out: bytes, by what they are for. Each term is a count of numbers times the bytes of
one, with its source beside it; both kinds of machine share most terms. Knows nothing about how much memory there is.
"""

import math
import resource
import sys
from dataclasses import dataclass
from typing import cast

import psutil
import torch
from transformers import PreTrainedModel, TrainingArguments
from trl import SFTConfig

from sft.config.parallelism import processes_a_sequence
from sft.config.recipe import Recipe, keeps_packed_samples_apart
from sft.data.dataset_card import DatasetCard
from sft.models.generate import ANSWER_TOKENS, BATCH, BATCH_ON_A_GPU
from sft.models.meta_model import MetaModel
from sft.models.unpacked_weights import HELD_AT_MOST
from sft.training import strategy
from sft.training.cpu import HEAD_TILE, can_mask_head
from sft.training.packed_attention import attends_by_sample, head_size, needs_no_mask

GIB = 2**30
FLOAT32 = 4
# What CUDA, cuBLAS, bitsandbytes and their kernels take of a card beside torch's tensors: 0.67 to 0.84 GiB on an H200
# (benchmarks/README.md).
CUDA_CONTEXT = round(0.75 * GIB)
# trl/kernels/chunked_logprob.py, trl/trainer/utils.py: TRL never makes all logits, only tiles of so many tokens by so
# many entries of the vocabulary.
TOKENS_A_TILE, VOCABULARY_A_TILE = 4096, 32768
# The tensors of a tile's size that are there at once on a device without Triton: `_forward_tile` has the product, its
# scaled copy, that less its maximum, its exponential; `_backward_tile` the product, y, z, log p, p, the gradient, the
# target as numbers and their difference, and the target as booleans. With Triton there is one.
FORWARD_TILES, BACKWARD_TILES = 4, 8.25
# sft/training/cpu.py: of a tile of supervised tokens there are at once the logits, their exponentials,
# probabilities and what the entropy is summed of in float32, and the product and the probabilities in what products
# are computed in.
SUPERVISED_TILES = 4
# What half precision takes on a CPU besides, as measured, not derived: oneDNN's kernels, and for its products about as
# much again as is kept for the backward pass.
HALF_ON_CPU = GIB // 8
# sft/evaluation/score.py: tokens of a question with its system message, and of the longest text; of the latter's logits
# there are at once both models' log-probabilities, what they are made of, and two steps of what is summed.
ASKED_TOKENS, TEXT_TOKENS, TEXT_TENSORS = 64, 128, 6
# float32 numbers that an optimizer keeps for each weight; all others keep Adam's two.
STATES = {"sgd": 0, "adafactor": 0, "adagrad": 1, "lion": 1, "rmsprop": 1, "ademamix": 3}
# trl/models/activation_offloading.py, `max_fwd_stash_size`: so many kept tensors are still on the GPU while they are
# copied, and one is there that is needed.
STASHED = 5 + 1


@dataclass(frozen=True)
class Memory:
    """The predicted peak of one process, in bytes, by what it is for; the parts add up to it."""

    on_gpu: bool
    process: int
    weights: int
    training: int
    activations: int
    logits: int
    scoring: int

    @property
    def peak(self) -> int:
        """Bytes of all parts."""
        return self.process + self.weights + self.training + self.activations + self.logits + self.scoring

    def line(self) -> str:
        """Such as "8.9 GiB of GPU memory a process: ..."."""
        parts = {
            "CUDA itself" if self.on_gpu else "the process so far": self.process,
            "weights": self.weights,
            "adapters, gradients, optimizer": self.training,
            "activations": self.activations,
            "logits": self.logits,
        }
        if self.scoring:
            parts["evaluations beyond that"] = self.scoring
        shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return f"{self.peak / GIB:.1f} GiB of {'GPU memory' if self.on_gpu else 'RAM'} a process: {shown}"


def predict_memory(recipe: Recipe, card: DatasetCard, *, on_gpu: bool, model: MetaModel | None = None) -> Memory:
    """The peak of one process of this run, on a GPU or in RAM; `model` is the recipe's, if it was built already.

    On a GPU the peak is that of the worst moment of a step, since torch gives one moment's memory to the next. What
    torch allocated on one came to 2% to 4% less for a model of 7B in four settings; what its allocator cannot use
    for being in pieces is `gpu.usable_bytes`'s. On a CPU the moments of a step add up: the C library's heap gives
    nothing back, and what one moment left free seldom fits the next; what comes before the steps and after them does
    find room there. This came within 4% of the resident memory of 20 steps of a 135M model in six settings in float32,
    in 4 bits or not, with and without DeepSpeed, recomputation and scores (`benchmarks.memory`).

    Of evaluation prompts, scores and saving what does not fit into what a step has freed is counted. Not counted: a
    custom optimizer's own buffers; logits under label smoothing.

    Raises:
        UserError: the model's configuration cannot be read, or the adapter does not fit it.
        RuntimeError: the architecture cannot be counted without values, such as a mixture of experts.
    """
    model = model or MetaModel.of(recipe.model, recipe.training)
    weights, training = _weights(recipe, model), _training(recipe, model, on_gpu)
    kept, one_layer = _activations(recipe, card, model, on_gpu)
    forward, backward = _logits(recipe, card, model, on_gpu)
    scoring = _scoring(recipe, model, on_gpu)
    if not on_gpu:
        activations = kept + one_layer + (HALF_ON_CPU + kept if strategy.half_precision(recipe.training) else 0)
        in_a_step = activations + forward + backward
        scoring = max(scoring - in_a_step, 0)
        saving = max(training.saving - in_a_step - scoring, 0)
        trained = training.held + training.gradients + training.step + saving
        # The file that weights are read from counts until they are, and all that comes later takes its place.
        read = sum(weight.parameters for weight in model.weights) * model.stored_dtype.itemsize
        return Memory(
            on_gpu=False,
            process=psutil.Process().memory_info().rss,
            weights=weights + max(read - trained - in_a_step - scoring, 0),
            training=trained,
            activations=activations,
            logits=forward + backward,
            scoring=scoring,
        )
    # One weight at a time is taken out of 4 or 8 bits for the gradient that goes through it; `MatMul4Bit.backward`.
    dequantised = max((weight.parameters for weight in model.weights if weight.is_quantised), default=0)
    taken_out = dequantised * strategy.compute_dtype(recipe.training, model.dtype).itemsize
    moments = [
        (training.held, kept, backward, 0),
        (training.held + training.gradients, kept + one_layer + taken_out, 0, 0),
        (training.held + training.gradients + training.step, 0, 0, 0),
        (training.held, 0, 0, scoring),
    ]
    return Memory(True, CUDA_CONTEXT, weights, *max(moments, key=sum))


@dataclass(frozen=True)
class _Training:
    """Bytes for what is trained: held all the time, during a backward pass, during a step, and while saving."""

    held: int
    gradients: int
    step: int
    saving: int


def _training(recipe: Recipe, model: MetaModel, on_gpu: bool) -> _Training:
    training, trainable = recipe.training, model.trainable
    zero = strategy.zero_config(training, model.text_config.hidden_size)
    size = strategy.trained_dtype(recipe.model, training, model.dtype).itemsize
    # Without an adapter, what is trained is the weights themselves, which are counted there.
    parameters = size * model.adapter_parameters
    if zero is None:
        # FSDP divides parameters, gradients and states alike.
        part = trainable / (training.world_size if training.fsdp else 1)
        held = parameters * part / trainable + part * states_bytes(training, size)
        return _Training(round(held), round(size * part), 0, 0)
    # deepspeed/runtime/zero/stage_1_and_2.py: each process keeps float32 masters and states of its part. Gradients are
    # copied into buckets, averaged, and made one float32 gradient for the step.
    part = trainable / (training.world_size if zero.stage else 1)
    masters = round(part * (FLOAT32 + states_bytes(training, FLOAT32)))
    # torch/optim/adam.py, `denom`: AdamW that is not fused makes two tensors as large as the part.
    in_a_step = 0 if "fused" in strategy.optimizer_name(training) else round(part * 2 * FLOAT32)
    buckets = (2 if zero.overlap_comm and zero.stage in (1, 2) else 1) * zero.reduce_bucket_size * size
    if zero.stage == 3:
        parameters = round(parameters / training.world_size)
    if not on_gpu:
        # Of a bucket, only the pages that a gradient was written to count; saving copies masters and states.
        gradients = size * trainable + round(part * FLOAT32)
        if strategy.shares_gradients(training, zero, on_gpu=False):
            gradients += min(zero.reduce_bucket_size, trainable) * size + round(part * size)
        elif size != FLOAT32:
            gradients += size * trainable  # flattened, then cast
        return _Training(parameters + masters, gradients, in_a_step, masters if _saves(training) else 0)
    averaged = round(part * size)
    if strategy.offloads_optimizer(zero):
        return _Training(parameters, buckets + averaged, 0, 0)
    return _Training(parameters + masters, buckets + averaged, in_a_step, 0)


def _weights(recipe: Recipe, model: MetaModel) -> int:
    """The base model as it is held; where it is divided, a process has its part and the largest unit gathered.

    ZeRO-3 gathers weight by weight, FSDP layer by layer, which leaves weights in bytes undivided.
    """
    training, zero = recipe.training, strategy.zero_config(recipe.training)
    dtype = strategy.compute_dtype(training, model.dtype)
    sizes = [model.bytes_held(weight, dtype) for weight in model.weights]
    if zero is not None and zero.stage == 3:
        return round(sum(sizes) / training.world_size + max(sizes))
    if training.fsdp:
        are_bytes = recipe.model.bnb_4bit_quant_storage in (None, "uint8") or recipe.model.load_in_8bit
        whole = sum(
            size for size, weight in zip(sizes, model.weights, strict=True) if weight.is_quantised and are_bytes
        )
        divided = sum(sizes) - whole
        return round(whole + divided / training.world_size + divided / model.text_config.num_hidden_layers)
    return round(sum(sizes))


def _activations(recipe: Recipe, card: DatasetCard, model: MetaModel, on_gpu: bool) -> tuple[int, int]:
    """Bytes kept from the forward pass until the loss, and of one layer more while that is recomputed."""
    training, dtype = recipe.training, strategy.compute_dtype(recipe.training, model.dtype)
    sequences, tokens = batch_shape(training, card)
    zero = strategy.zero_config(training)
    zero_stage = None if zero is None else zero.stage
    device = "cuda" if on_gpu else "cpu"
    by_sample = attends_by_sample(training) and needs_no_mask(model.text_config, dtype, device)
    kept = model.kept_for_backward(
        (sequences, tokens),
        dtype,
        dtype if strategy.autocasts(training) else strategy.trained_dtype(recipe.model, training, model.dtype),
        is_masked=not by_sample and (training.packing or sequences > 1),
        is_fused=strategy.fuses_lora(recipe.model, zero_stage, is_fsdp=bool(training.fsdp)),
    )
    if strategy.autocasts(training):
        # Autocast keeps a copy of each adapter in its precision.
        kept += model.adapter_parameters * dtype.itemsize
    layers = model.text_config.num_hidden_layers
    if not training.activation_checkpointing:
        # In RAM, but for what is on its way there, which is less than one layer's.
        return (kept // layers if training.activation_offloading else kept), 0
    # transformers/modeling_layers.py: only what goes into each layer is kept.
    inputs = sequences * tokens * model.text_config.hidden_size * dtype.itemsize
    return inputs * (min(layers, STASHED) if training.activation_offloading else layers), kept // layers


def _logits(recipe: Recipe, card: DatasetCard, model: MetaModel, on_gpu: bool) -> tuple[int, int]:
    """Bytes for a tile of logits in the forward and in the backward pass, with the gradients that come of it."""
    sequences, length = batch_shape(recipe.training, card)
    tokens, hidden = sequences * (length - 1), model.text_config.hidden_size
    tile = min(tokens, TOKENS_A_TILE) * min(model.text_config.vocab_size, VOCABULARY_A_TILE)
    gradient = tokens * hidden * FLOAT32
    if not recipe.model.use_peft:
        gradient += model.text_config.vocab_size * hidden * FLOAT32
    size = strategy.compute_dtype(recipe.training, model.dtype).itemsize
    if on_gpu:
        return tile * size, tile * size + gradient
    if can_mask_head(cast(PreTrainedModel, model.module)):
        # The fullest batch has more than its share of supervised tokens, rarely twice as much.
        supervised = min(round(2 * tokens * card.supervised_tokens / card.tokens), tokens)
        rows = min(supervised, HEAD_TILE)
        return rows * model.text_config.vocab_size * (SUPERVISED_TILES * FLOAT32 + 2 * size), gradient
    return round(tile * FLOAT32 * FORWARD_TILES), round(tile * FLOAT32 * BACKWARD_TILES) + gradient


def _scoring(recipe: Recipe, model: MetaModel, on_gpu: bool) -> int:
    """Bytes that evaluation prompts and scores take: weights out of 4 bits, a batch's cache, the logits of a text."""
    run, config = recipe.run, model.text_config
    rows = (BATCH_ON_A_GPU if on_gpu else BATCH) if run.identity_name else len(run.eval_prompts or ())
    if not rows:
        return 0
    dtype = strategy.compute_dtype(recipe.training, model.dtype)
    unpacked = sum(weight.parameters for weight in model.weights if weight.is_quantised) * dtype.itemsize
    zero = strategy.zero_config(recipe.training)
    is_in_parts = recipe.training.fsdp or (zero is not None and zero.stage == 3)
    is_held = recipe.model.load_in_4bit and not (on_gpu or is_in_parts) and unpacked <= HELD_AT_MOST
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * head_size(config)
    cache = rows * (ASKED_TOKENS + ANSWER_TOKENS) * config.num_hidden_layers * 2 * width * dtype.itemsize
    logits = TEXT_TOKENS * config.vocab_size * FLOAT32 * TEXT_TENSORS if run.identity_name else 0
    return is_held * unpacked + cache + logits


def batch_shape(training: SFTConfig, card: DatasetCard) -> tuple[int, int]:
    """(sequences, tokens) of what one process computes of the largest batch; whole packs are laid end to end."""
    batch = training.per_device_train_batch_size
    limit = training.max_length or card.longest_sample
    longest = limit if training.packing else min(card.longest_sample, limit)
    if keeps_packed_samples_apart(training):
        batch, longest = 1, batch * longest
    return batch, math.ceil(longest / processes_a_sequence(training))


def peak_memory() -> int:
    """Bytes: the most this process has held so far on its GPU, or in RAM where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def states_bytes(training: TrainingArguments, size: int) -> float:
    """Bytes of an optimizer's states for each weight it holds in `size` bytes."""
    name = strategy.optimizer_name(training)
    numbers = next((count for optimizer, count in STATES.items() if optimizer in name), 2)
    return numbers * (1 if "8bit" in name else 0.5 if "4bit" in name else size)


def _saves(training: TrainingArguments) -> bool:
    return str(getattr(training.save_strategy, "value", training.save_strategy)) != "no"
