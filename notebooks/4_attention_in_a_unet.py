# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Criss-cross attention in a U-Net
#
# `RecurrentCrissCrossAttention` goes on a feature map between two layers of any network, here into the bottleneck of
# a small 2-D U-Net. Both, with and without it, learn images in which one coloured square decides the class of every
# pixel: red, green or blue. Whoever cannot see the square can only guess. It needs
# `pip install .` in a clone of the repository, and takes a minute or two on a CPU.

# %%
import torch
from PIL import Image
from torch import nn

from ccnet_hf import RecurrentCrissCrossAttention
from ccnet_hf.experiments.far_marks_dataset import COLOURS, far_marks, parts


torch.set_num_threads(max(1, torch.get_num_threads() // 2))
images, labels, corners = far_marks(6, torch.Generator().manual_seed(1))
tiles = (images.clamp(-1, 2) + 1) / 3
strip = torch.cat(list(tiles), dim=2).permute(1, 2, 0).mul(255).byte().numpy()
Image.fromarray(strip).resize((960, 160))

# %% [markdown]
# ## The network
#
# Two levels, 3x3 convolutions, batch norm, which knows nothing of where things are in an image. A pixel sees about
# 20 pixels around it; the images are 80 wide.


# %%
def block(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Images (B, 3, H, W) in, logits (B, 3, H, W) out; `recurrence` rounds of attention in the bottleneck."""

    def __init__(self, recurrence: int, channels: int = 12):
        super().__init__()
        self.down = nn.ModuleList([block(3, channels), block(channels, 2 * channels)])
        self.bottleneck = block(2 * channels, 4 * channels)
        self.attention = RecurrentCrissCrossAttention(4 * channels, recurrence=recurrence) if recurrence else None
        self.up = nn.ModuleList([block(6 * channels, 2 * channels), block(3 * channels, channels)])
        self.pooling = nn.MaxPool2d(2)
        self.classifier = nn.Conv2d(channels, len(COLOURS), 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skipped = []
        for down in self.down:
            images = down(images)
            skipped.append(images)
            images = self.pooling(images)
        hidden_state = self.bottleneck(images)
        if self.attention is not None:
            hidden_state, _ = self.attention(hidden_state)
        for up, feature_map in zip(self.up, reversed(skipped), strict=True):
            hidden_state = nn.functional.interpolate(hidden_state, feature_map.shape[2:], mode="bilinear")
            hidden_state = up(torch.cat([hidden_state, feature_map], dim=1))
        return self.classifier(hidden_state)


# %% [markdown]
# ## Training
#
# On fresh images in every step, so that nothing can be learnt by heart. gamma, by which the attention's result is
# multiplied before it is added, starts at 0: at first both networks are the plain U-Net.


# %%
def train(recurrence: int, steps: int = 200, batch_size: int = 8) -> UNet:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = UNet(recurrence)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        images, labels, _ = far_marks(batch_size, generator)
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def score(network: UNet) -> dict[str, float]:
    """Fraction of the pixels of new images that are right, by where they lie as seen from the square."""
    images, labels, corners = far_marks(100, torch.Generator().manual_seed(2**31))
    right = torch.cat([network(few) for few in images.split(20)]).argmax(dim=1) == labels
    return {part: right[mask].float().mean().item() for part, mask in parts(corners).items()}


scores = {name: score(train(recurrence)) for name, recurrence in (("plain", 0), ("two rounds", 2))}
print(f"{'':<12}" + "".join(f"{part:>12}" for part in scores["plain"]))
for name, row in scores.items():
    print(f"{name:<12}" + "".join(f"{100 * value:>11.1f}%" for value in row.values()))

# %% [markdown]
# Near the square both are right. Far from it the plain network is at chance, one in three. With two rounds of
# attention in the bottleneck a pixel knows what lies anywhere: the first carries it along rows and columns, the
# second from there to everywhere.

# %%
assert scores["plain"]["elsewhere"] < 0.45
assert scores["two rounds"]["elsewhere"] > 0.9
