"""How many parameters, by role: position tables grow with the token count, backbones do not."""

from torch import nn


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of a model from `create_model`: total, pos_embed, patch_embed, head and backbone.

    `backbone` is total - head - pos_embed, so it includes the patch embedding. A fixed position table is a buffer and
    counts 0. Works on the meta device.
    """
    roles = {"pos_embed": 0, "patch_embed": 0}
    for name, parameter in model.named_parameters():
        role = name.partition(".")[0]
        if role in roles:
            roles[role] += parameter.numel()
    classifier = model.get_classifier()  # type: ignore[operator]
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    head = sum(parameter.numel() for module in heads for parameter in module.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"total": total, **roles, "head": head, "backbone": total - head - roles["pos_embed"]}
