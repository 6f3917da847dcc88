"""GPU hours and memory that a run's training will take, estimated from its backbone's parameters and FLOPs.

The study file gives what an image costs (`estimate`); nothing is measured here. Assumed: forward and backward take
three forward passes, four with gradient checkpointing; features are extracted in float32, eight times slower; training
holds 18 bytes a parameter (weights, gradients and AdamW's two moments in float32, a half-precision copy) and 2 bytes a
kept activation, of which gradient checkpointing leaves a tenth; the GPU sustains `teraflops` and is fed fast enough.
"""

from dataclasses import dataclass, replace

from reid_utils.study.study_file import StudyError, check_fields

BYTES_PER_PARAMETER, BYTES_PER_ACTIVATION, KEPT_BY_CHECKPOINTING, FLOAT32_SLOWDOWN = 18, 2, 0.1, 8

ESTIMATE_FIELDS = {
    "notebook": str,
    "teraflops": (int, float),
    "training_images": int,
    "other_images": int,
    "final_images": int,
    "backbones": dict,
}
COST_FIELDS = dict.fromkeys(("parameters", "gflops", "activations"), (int, float))


@dataclass(frozen=True)
class Estimate:
    """GPU hours of a run over all its seeds, GiB at once on each GPU, and how many GPUs share the work."""

    hours: float
    gib: float
    processes: int

    def __str__(self):
        each = " on each GPU" if self.processes > 1 else ""
        return f"estimate: {self.hours:.1f} GPU hours, {self.gib:.0f} GiB{each}"


def estimate(settings, costs):
    """Estimate of a training run from its settings in force and the study's `estimate` -> Estimate, or None.

    settings: seeds, epochs, batch_pairs, backbone, and where declared gradient_checkpointing and processes. costs:
    teraflops, training_images (an epoch), other_images (each epoch), final_images, and backbones {name: parameters
    and activations an image in millions, gflops of an image's forward pass}. None for a backbone without an entry.
    """
    one = costs["backbones"].get(settings["backbone"])
    if one is None:
        return None
    again, processes = settings.get("gradient_checkpointing", False), settings.get("processes", 1)
    training = 2 * costs["training_images"] * settings["epochs"] * (4 if again else 3)
    validation = (costs["other_images"] * (settings["epochs"] + 1) + costs["final_images"]) * FLOAT32_SLOWDOWN
    seconds = len(settings["seeds"]) * (training + validation) * one["gflops"] / (1000 * costs["teraflops"])
    images = 2 * settings["batch_pairs"] / processes
    kept = images * one["activations"] * BYTES_PER_ACTIVATION * (KEPT_BY_CHECKPOINTING if again else 1)
    gib = 1e6 * (one["parameters"] * BYTES_PER_PARAMETER + kept) / 2**30
    return Estimate(seconds / 3600, gib, processes)


def check_costs(costs):
    """Raise StudyError unless the study's `estimate` names every cost of every backbone, and nothing else."""
    tables = [(costs, ESTIMATE_FIELDS, "estimate")]
    tables += [(one, COST_FIELDS, f"estimate: {name}") for name, one in costs.get("backbones", {}).items()]
    for mapping, fields, place in tables:
        check_fields(mapping, fields, place)
        for key in fields.keys() - mapping.keys():
            raise StudyError(f"{place} lacks the key {key!r}")


def with_estimates(runs, declared, costs):
    """Runs whose minutes come from the estimate where there is one, and {run id: Estimate} of these.

    declared: notebook -> {parameter: default}; costs: the study's `estimate`, or empty. Raises as `check_costs`.
    """
    found = {}
    if costs:
        check_costs(costs)
    for run in runs if costs else ():
        settings = {**declared[run.notebook], **run.parameters}
        told = estimate(settings, costs) if run.notebook == costs["notebook"] else None
        if told is not None:
            found[run.id] = told
    timed = [
        replace(run, minutes=60 * found[run.id].hours / found[run.id].processes) if run.id in found else run
        for run in runs
    ]
    return timed, found


def assumptions(costs):
    """One line that says what the estimates assume."""
    return (
        f"estimates, not measurements: a GPU that sustains {costs['teraflops']:g} teraflops in half precision, "
        f"{costs['training_images']} training images; AdamW and features in float32, fused attention; "
        "decoding and augmentation fast enough"
    )
