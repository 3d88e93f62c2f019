"""Compiles the blocks of a dual encoder's towers by torch.compile, in place."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from his2lip.models.encoder import DualEncoder


def compile_blocks(model: DualEncoder) -> int:
    """Compiles each block of both towers; returns how many there are.

    The equal blocks of a tower share one compiled program, so that compiling takes seconds where a whole
    tower takes minutes. Weights, their names and checkpoints stay as they are. Results differ by rounding.
    A tower without repeated blocks (a ResNet's stages differ) is left as it is.
    """
    blocks = list(_blocks(model.clip))
    for block in blocks:
        block.compile()
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of equal modules, each of which has parts."""
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1:
        kinds = {_kind(child) for child in children}
        if len(kinds) == 1 and any(children[0].children()):
            yield from children
            return
    for child in children:
        yield from _blocks(child)


def _kind(module: nn.Module) -> tuple[object, ...]:
    """What equal modules have in common: the class, and names and shapes of the weights."""
    return type(module), *((name, weight.shape) for name, weight in module.named_parameters())
