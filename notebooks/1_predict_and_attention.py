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
# # Segment a picture, and look at what a pixel attends to
#
# A checkpoint of CCNet, a picture, its classes; then the weights that the criss-cross attention gives. Needs
# `pip install '.[timm]'` in a clone of the repository, whose checkpoint and picture it uses; it takes seconds on a
# CPU.

# %%
from PIL import Image

from ccnet_hf.inference import Predictor
from ccnet_hf.inference.attend import draw_figure
from ccnet_hf.inference.loading import load_checkpoint
from ccnet_hf.visualization import overlay


model, processor = load_checkpoint("../checkpoints/ccnet-mobilenetv2-camvid", "auto", "auto")
predictor = Predictor(model, processor)
image = Image.open("../examples/street.jpg").convert("RGB")
image

# %% [markdown]
# ## Classes
#
# `label_maps` gives one class id per pixel, at the size of the picture. Any folder or Hub id that
# `AutoModelForSemanticSegmentation` loads can be used here; `Predictor(..., scales=(0.75, 1.0), flip=True)` averages
# several views.

# %%
(label_map,) = predictor.label_maps([image])
class_names = [model.config.id2label[label] for label in range(model.config.num_labels)]
overlay(image, label_map, processor.palette, class_names)

# %%
shares = label_map.flatten().bincount(minlength=len(class_names)) / label_map.numel()
for share, name in sorted(zip(shares.tolist(), class_names, strict=True), reverse=True)[:5]:
    print(f"{name:<12}{100 * share:5.1f} % of the pixels")

# %% [markdown]
# ## Attention
#
# In one round a pixel attends to its row and its column. The second round, with the same weights, attends to rows
# and columns again, and so by way of them to the whole picture. `Predictor.attention` gives the weights of the
# rounds at one pixel; `draw_figure` draws them, and below their ratio to attention that prefers nothing: orange
# above, blue below.

# %%
x, y = 300, 200
attention = predictor.attention(image, (x, y))
first, both = attention.map(1), attention.map()
print(f"position {attention.position} of {tuple(both.shape)}; gamma {attention.gammas[0]:.3f}")
print(f"positions with weight: {(first > 0).sum().item()} after one round, {(both > 0).sum().item()} after two")
draw_figure(image, (x, y), attention)

# %% [markdown]
# Two things to read in it. Even attention without any preference puts half of the weight of two rounds on the cross,
# so look at the ratio. And what is attended to is multiplied by gamma before it is added: near 0, as in this small
# checkpoint, it hardly counts. Notebook 4 shows a network that cannot do without it.

# %%
row, column = attention.position
height, width = both.shape
assert (first > 0).sum() <= height + width - 1, "one round reaches the cross only"
assert (both > 0).sum() == height * width, "two rounds reach every position"
