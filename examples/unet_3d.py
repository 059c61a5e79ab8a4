"""A small 3-D U-Net with criss-cross attention in its bottleneck, for volumes of unequal size in one batch.

Every voxel of the bottleneck looks along its three axes, three rounds of it, so that it reaches every other; dense
attention over its 12x12x12 positions would compare each with 1728, this one with 34 a round. `python
examples/unet_3d.py` trains it for a moment on synthetic volumes: a ball, and everything in the half that holds it.
"""

import torch
from torch import nn

from ccnet_hf import RecurrentCrissCrossAttention


class Block(nn.Sequential):
    """Two 3x3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            nn.Conv3d(in_channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm3d(channels, affine=True),
            nn.LeakyReLU(0.01),
        )


class UNet3D(nn.Module):
    """Volumes (B, in_channels, D, H, W) in, logits (B, num_labels, D, H, W) out; sides are multiples of 4.

    Args:
        in_channels: of the volumes.
        num_labels: of the logits.
        channels: at full size; two and four times as many below.
        num_heads: of the attention.
    """

    def __init__(self, in_channels: int = 1, num_labels: int = 3, channels: int = 16, num_heads: int = 2):
        super().__init__()
        self.down = nn.ModuleList([Block(in_channels, channels), Block(channels, 2 * channels)])
        self.bottleneck = Block(2 * channels, 4 * channels)
        # gamma starts at 0: at first the network is the plain U-Net.
        self.attention = RecurrentCrissCrossAttention(4 * channels, recurrence=3, num_axes=3, num_heads=num_heads)
        self.up = nn.ModuleList([Block(6 * channels, 2 * channels), Block(3 * channels, channels)])
        self.pooling = nn.MaxPool3d(2)
        self.classifier = nn.Conv3d(channels, num_labels, 1)

    def forward(self, volumes: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`mask` (B, D, H, W) is true where a volume is, and false where it is padded to the batch."""
        features = []
        for block in self.down:
            volumes = block(volumes)
            features.append(volumes)
            volumes = self.pooling(volumes)
        hidden_state = self.bottleneck(volumes)
        if mask is not None:
            mask = nn.functional.max_pool3d(mask[:, None].float(), 4)[:, 0] > 0
        hidden_state, _ = self.attention(hidden_state, mask=mask)
        for block, skipped in zip(self.up, reversed(features), strict=True):
            hidden_state = nn.functional.interpolate(hidden_state, skipped.shape[2:], mode="trilinear")
            hidden_state = block(torch.cat([hidden_state, skipped], dim=1))
        return self.classifier(hidden_state)


def synthetic_volumes(number: int, side: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright ball, and labels: 1 the ball, 2 the rest of the half that it lies in, 0 the other half."""
    axis = torch.arange(side)
    centres = torch.randint(side // 8, side - side // 8, (number, 3), generator=generator)
    distance = sum(
        (axis.view([-1 if i == j else 1 for i in range(3)]) - centres[:, j].view(-1, 1, 1, 1)) ** 2 for j in range(3)
    )
    ball = distance <= (side / 8) ** 2
    same_half = (axis >= side // 2).view(1, -1, 1, 1) == (centres[:, 0] >= side // 2).view(-1, 1, 1, 1)
    labels = (2 * same_half.expand_as(ball).long()).masked_fill(ball, 1)
    volumes = 0.3 * torch.randn(number, 1, side, side, side, generator=generator) + 2 * ball[:, None]
    return volumes, labels


def main(steps: int = 60, side: int = 24) -> float:
    """Train for some steps; returns the fraction of the voxels of new volumes that are right."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = UNet3D()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        volumes, labels = synthetic_volumes(2, side, generator)
        loss = nn.functional.cross_entropy(model(volumes), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    volumes, labels = synthetic_volumes(4, side, torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = float((model.eval()(volumes).argmax(1) == labels).float().mean())
    print(f"{100 * right:.1f} % of the voxels are right, gamma {model.attention.gamma.item():.3f}")
    return right


if __name__ == "__main__":
    main()
