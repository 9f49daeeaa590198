"""Encoder layers compiled by torch, each for itself: kernels are fused, and a step launches fewer of them."""

from torch import nn

RECOMPILE_LIMIT = 64
"""Limit of torch's cache of compiled code, in which all layers share one entry. Its default of 8 counts training,
evaluation, no gradient, with and without a mask, of every branch. Beyond the limit torch goes on uncompiled, without an
error."""


def compile_layers(model: nn.Module) -> int:
    """Have the attention layers of a model's encoders compiled when they are first used; their number.

    Lengths are dynamic, so that a new one compiles nothing. Dropout draws as without compiling: then the round without
    gradient and the second one drop the same. Names in the state dict stay as they are.
    """
    from torch._dynamo import config  # takes seconds to import, and most runs do without

    config.recompile_limit = max(RECOMPILE_LIMIT, config.recompile_limit)
    layers = [
        layer
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for layer in module
        if any("attention" in name for name, _ in layer.named_children())
    ]
    for layer in layers:
        layer.compile(dynamic=True, options={"fallback_random": True})
    return len(layers)
