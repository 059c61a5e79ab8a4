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
# # Fine-tune on your own classes, with transformers' `Trainer`
#
# From pictures and label maps to a checkpoint that knows other classes than it was trained on. The data here is
# drawn in the first cells, so that everything runs in minutes on a CPU; put your own files in its place. Needs
# `pip install '.[train,timm]'` in a clone of the repository, whose checkpoint it starts from.

# %%
import random

import torch
from PIL import Image, ImageDraw
from transformers import Trainer, TrainingArguments, set_seed

from ccnet_hf import CCNetForSemanticSegmentation, CCNetImageProcessor
from ccnet_hf.evaluation import compute_metrics
from ccnet_hf.visualization import overlay


set_seed(0)
CLASSES = ["ground", "disc", "box"]

# %% [markdown]
# ## Data
#
# A label map is an image of one channel whose values are class ids, 255 where nothing is labelled. With files,
# `draw` becomes `Image.open(...)` of a picture and of its label map.


# %%
def draw(seed: int, side: int = 96) -> tuple[Image.Image, Image.Image]:
    """A picture with discs and boxes of any colour on noise, and its label map."""
    numbers = random.Random(seed)
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    labels = Image.new("L", (side, side), 0)
    for _ in range(4):
        label = numbers.choice([1, 2])
        left, top = numbers.randrange(side - 32), numbers.randrange(side - 32)
        size = numbers.randrange(20, 32)
        corners = (left, top, left + size, top + size)
        for canvas, fill in ((picture, tuple(numbers.randrange(256) for _ in range(3))), (labels, label)):
            shape = ImageDraw.Draw(canvas)
            (shape.ellipse if label == 1 else shape.rectangle)(corners, fill=fill)
    return picture, labels


processor = CCNetImageProcessor.from_pretrained(
    "../checkpoints/ccnet-mobilenetv2-camvid", size={"shortest_edge": 96, "longest_edge": 96}
)


class Drawn(torch.utils.data.Dataset):
    def __init__(self, seeds: range):
        self.examples = [draw(seed) for seed in seeds]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        picture, labels = self.examples[index]
        inputs = processor(picture, segmentation_maps=labels, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]}


train_dataset, eval_dataset = Drawn(range(160)), Drawn(range(1000, 1032))
train_dataset.examples[0][0].resize((288, 288))

# %% [markdown]
# ## Training
#
# `ignore_mismatched_sizes` replaces the classifiers, whose size follows from the classes; all else keeps its
# weights. `compute_metrics(model.config)` counts pixels while `Trainer` evaluates, at the size of the label maps. No
# logits are kept, and with `batch_eval_metrics` no label maps either, so that memory does not grow with the data.

# %%
model = CCNetForSemanticSegmentation.from_pretrained(
    "../checkpoints/ccnet-mobilenetv2-camvid",
    id2label=dict(enumerate(CLASSES)),
    label2id={name: label for label, name in enumerate(CLASSES)},
    ignore_mismatched_sizes=True,
)
metrics = compute_metrics(model.config)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="runs/finetune",
        learning_rate=1e-3,
        warmup_steps=5,
        lr_scheduler_type="polynomial",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        num_train_epochs=6,
        batch_eval_metrics=True,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=train_dataset,
    eval_dataset=eval_dataset,
    compute_metrics=metrics,
    preprocess_logits_for_metrics=metrics.count,
)
before = trainer.evaluate()["eval_mean_iou"]
trainer.train()
scores = trainer.evaluate()
for name, value in scores.items():
    if "iou" in name or "accuracy" in name:
        print(f"{name:<24}{100 * value:6.1f}")

# %%
assert scores["eval_mean_iou"] > max(0.6, before), "it has learnt the classes"

# %% [markdown]
# ## Save and use
#
# The folder holds model, image processor and their code. `AutoModelForSemanticSegmentation` and `pipeline` read it,
# with `import ccnet_hf` or, without the package, with `trust_remote_code=True`.

# %%
trainer.save_model("runs/finetune")
processor.save_pretrained("runs/finetune")

picture, _ = draw(2000)
with torch.inference_mode():
    outputs = model.eval()(**processor(picture, return_tensors="pt").to(model.device))
(label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(96, 96)])
overlay(picture, label_map, [[128, 128, 128], [220, 80, 60], [60, 120, 220]], CLASSES).resize((480, 384))
