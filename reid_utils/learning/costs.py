"""What an encoder costs: parameters, GFLOPs, milliseconds an image."""

import statistics
import time

import torch


def count_parameters(encoder):
    """Number of trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def count_gflops(encoder):
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the size of an encoder on the meta device.

    There nothing is computed, and no device's fused kernel escapes the count; the encoder's mode is left as it was.
    """
    from torch.utils.flop_counter import FlopCounterMode

    was_training = encoder.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, *encoder.image_size, device="meta"))
    encoder.train(was_training)
    return counter.get_total_flops() / 1e9


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
