"""The report's heads, and Keras's defaults behind them (it was written in Keras, so what it leaves unsaid is Keras's)."""

from __future__ import annotations

from torch import nn

__all__ = ["batch_norm", "dense_head", "keras_initialise"]


def batch_norm(features: int) -> nn.BatchNorm1d:
    """Keras's constants: epsilon 1e-3; momentum 0.99 of the old value, which is 0.01 in torch's convention."""
    return nn.BatchNorm1d(features, eps=1e-3, momentum=0.01)


def dense_head(features: int, second: int) -> nn.Sequential:
    """BatchNorm, Dense 128 ReLU, Dropout 0.25, BatchNorm, Dense `second` sigmoid, Dropout 0.2, BatchNorm, Dense 1.

    The last sigmoid is left to the loss and to whoever wants a score.

    Args:
        features: inputs, per image.
        second: width of the second dense layer: 64 on AlexNet, 32 on VGG19.
    """
    return nn.Sequential(
        batch_norm(features),
        nn.Linear(features, 128),
        nn.ReLU(),
        nn.Dropout(0.25),
        batch_norm(128),
        nn.Linear(128, second),
        nn.Sigmoid(),
        nn.Dropout(0.2),
        batch_norm(second),
        nn.Linear(second, 1),
    )


def keras_initialise(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases in every convolution and dense layer, in place (Glorot & Bengio 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
