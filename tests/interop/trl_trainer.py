"""Run by the interpreter that has TRL: its SFTTrainer trains our model on pictures.

usage: trl_trainer.py MODEL_FOLDER TARGET

Prints the losses as JSON and leaves the trained model in TARGET.
"""

import json
import sys

from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

import phi3v

assert phi3v.Phi3VConfig
model_folder, target = sys.argv[1:3]
colours = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
rows = [
    {
        "images": [Image.new("RGB", (80 + 10 * number, 60), colour)],
        "messages": [
            {"role": "user", "content": "What colour is this?"},
            {"role": "assistant", "content": f"It is {name}."},
        ],
    }
    for number in range(4)
    for name, colour in colours.items()
]
trainer = SFTTrainer(
    model=AutoModelForImageTextToText.from_pretrained(model_folder),
    processing_class=AutoProcessor.from_pretrained(model_folder),
    train_dataset=Dataset.from_list(rows),
    args=SFTConfig(
        target,
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
    ),
)
trainer.train()
trainer.save_model()
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
print("\n" + json.dumps({"losses": losses}))
