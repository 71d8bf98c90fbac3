"""Run by old releases of safetensors and tokenizers: what they read in a folder, as JSON.

usage: old_reader.py MODEL_FOLDER TEXT
"""

import hashlib
import json
import sys
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
tensors = {}
for file in sorted(folder.glob("*.safetensors")):
    with safe_open(file, framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118
            value = weights.get_tensor(name)
            tensors[name] = [list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(sys.argv[2])
print(json.dumps({"tensors": tensors, "ids": encoding.ids}))
