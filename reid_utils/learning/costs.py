"""What an encoder costs: parameters, GFLOPs, numbers kept for the backward pass, milliseconds an image."""

import statistics
import time
from itertools import chain

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode


def count_parameters(encoder):
    """Number of trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def count_gflops(encoder):
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the encoder's size.

    Counted on the meta device: nothing is computed, and no device's fused kernel escapes the count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward_on_meta(encoder, _on_meta(encoder))
    return counter.get_total_flops() / 1e9


def count_activations(encoder):
    """How many numbers the forward pass of one image keeps for the backward pass, parameters not counted.

    Counted on the meta device; attention matrices are left out, since fused attention does not keep them.
    """
    tensors, kept = _on_meta(encoder), {}

    def keep(tensor):
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    attention = _Softmax()
    with attention, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = _forward_on_meta(encoder, tensors)
    left_out = {_storage(tensor) for tensor in (*tensors.values(), *attention.outputs, features)}
    return sum(count for storage, count in kept.items() if storage not in left_out)


class _Softmax(TorchDispatchMode):
    """Notes the results of softmax while it is active."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function in (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default):
            self.outputs.append(result)
        return result


def _storage(tensor):
    return tensor.untyped_storage()._cdata


def _on_meta(encoder):
    named = chain(encoder.named_parameters(), encoder.named_buffers())
    return {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in named}


def _forward_on_meta(encoder, tensors):
    was_training = encoder.training
    images = torch.zeros(1, 3, *encoder.image_size, device="meta")
    features = functional_call(encoder.eval(), tensors, (images,))
    encoder.train(was_training)
    return features


def milliseconds_an_image(encoder, batch_size=16, repeats=5):
    """Milliseconds that an image's forward pass takes on this device: median of `repeats` batches, after a warm-up."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    batch = torch.zeros(batch_size, 3, *encoder.image_size, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            encoder(batch).sum().item()
            times.append(time.perf_counter() - start)
    encoder.train(was_training)
    return 1000 * statistics.median(times[1:]) / batch_size
